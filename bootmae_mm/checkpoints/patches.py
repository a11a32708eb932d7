"""Patch embeddings for other channels and patch sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fit_patch_embed(weight: Tensor, channels: int, patch_size: int) -> Tensor:
    """Fit the weight of a patch embedding to other images.

    Channels: one is the sum of all, as a gray picture has the same value in all; others repeat the given ones, scaled
    such that the sum stays the same (as timm does). Patch size: :func:`resample_patches`.

    Args:
        weight: (D, C, P, P).
        channels: Number of channels of the images.
        patch_size: Side of a patch in pixels.

    Returns:
        (D, channels, patch_size, patch_size).
    """
    given = weight.shape[1]
    if channels == 1:
        weight = weight.sum(dim=1, keepdim=True)  # (D, 1, P, P)
    elif channels != given:
        repeated = weight.repeat(1, -(-channels // given), 1, 1)[:, :channels]
        weight = repeated * (given / channels)  # (D, channels, P, P)
    return weight if weight.shape[-1] == patch_size else resample_patches(weight, patch_size)


def resample_patches(weight: Tensor, patch_size: int) -> Tensor:
    """Resample a patch embedding such that enlarged patches give the tokens that the original patches gave.

    The pseudo-inverse of resizing the pixels (bicubic, antialiased), rather than resizing the weights. Source: FlexiViT
    (Beyer et al. 2023, arXiv 2212.08013), section 3.4.

    Args:
        weight: (D, C, P, P).
        patch_size: New side of a patch.

    Returns:
        (D, C, patch_size, patch_size).
    """
    old = weight.shape[-1]
    pixels = torch.eye(old * old).view(old * old, 1, old, old)
    size = (patch_size, patch_size)
    resizing = F.interpolate(pixels, size, mode='bicubic', antialias=True).flatten(1)  # (P^2, new^2)
    inverse = torch.linalg.pinv(resizing)  # (new^2, P^2)
    flat = weight.float().flatten(2) @ inverse.T  # (D, C, new^2)
    return flat.unflatten(2, size).to(weight.dtype)
