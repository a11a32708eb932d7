"""Pictures of what an encoder sees: its features as colors, and what its class token attends to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bootmae_mm.models.encoder import PretrainingEncoder

SPREAD = 0.01  # share of the patches above, and below, the range of colors


@torch.no_grad()
def feature_panels(encoder: PretrainingEncoder, images: Tensor, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """Panels of images beside the features of their patches.

    Args:
        encoder: Encoder in eval mode.
        images: Normalized images, (B, C, H, W).
        mean: Mean of each channel, on the scale 0..255, (C, 1, 1).
        std: Standard deviation of each channel.

    Returns:
        ``image``; ``features``: the first three principal components of the patch tokens (after the final norm) over
        all images as red, green and blue; ``attention``: of the class token to the patches in the last block, mean over
        the heads, relative to the largest of the image, if there is a class token. (B, C, H, W) and twice (B, 3, H, W)
        in 0..1, float32, on the CPU.
    """
    hidden = encoder.encode_hidden(images)[-1]  # (B, 1 + L, D)
    tokens = encoder.encode_last(hidden, norm=True)[:, encoder.num_extra_tokens :].float()  # (B, L, D)
    panels = {
        'image': ((images.float() * std + mean) / 255).clamp(0, 1).cpu(),
        'features': _enlarged(principal_colors(tokens), encoder, images),
    }
    if encoder.num_extra_tokens:
        attention = encoder.class_attention(hidden).float().mean(dim=1)  # (B, L)
        panels['attention'] = _enlarged(heat_colors(attention), encoder, images)
    return panels


def principal_colors(tokens: Tensor) -> Tensor:
    """The first three principal components of all tokens as colors: (B, L, D) -> (B, L, 3) in 0..1.

    The sign of a component is that of its largest loading, so that the colors of two pictures of one encoder agree.
    """
    flat = tokens.flatten(0, 1)  # (B * L, D)
    flat = flat - flat.mean(dim=0)
    _, _, directions = torch.linalg.svd(flat, full_matrices=False)  # (min(B * L, D), D)
    directions = directions[:3]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    components = flat @ (directions * largest.sign()).T  # (B * L, 3 or less)
    low, high = torch.quantile(components, torch.tensor([SPREAD, 1 - SPREAD], device=components.device), dim=0)
    colors = ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    missing = 3 - colors.shape[1]  # of fewer than three tokens or dimensions
    colors = torch.cat([colors, colors.new_full((len(colors), missing), 0.5)], dim=1)
    return colors.unflatten(0, tokens.shape[:2])


def heat_colors(values: Tensor) -> Tensor:
    """Values relative to the largest of each image, from black over red to white: (B, L) -> (B, L, 3)."""
    share = values / values.amax(dim=1, keepdim=True).clamp(min=1e-12)
    return torch.stack([(3 * share - step).clamp(0, 1) for step in range(3)], dim=-1)


def _enlarged(colors: Tensor, encoder: PretrainingEncoder, images: Tensor) -> Tensor:
    """One color for each patch: (B, L, 3) -> (B, 3, H, W)."""
    maps = colors.transpose(1, 2).unflatten(2, encoder.grid_size)  # (B, 3, rows, columns)
    return F.interpolate(maps, images.shape[2:], mode='nearest').cpu()
