"""The weighted loss that both heads share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def loss_weights(ids_mask: Tensor, grid: tuple[int, int], weighted: bool = True) -> Tensor:
    """Weight of every masked patch in the losses: w = 1 + avg_pool3x3(mask), or ones.

    A patch inside a masked block weighs up to 2, a lone masked patch 1 + 1/9; zero padding counts in the average.
    Source: ``run_pretraining.py`` of the authors' code (``weight_mask``).

    Args:
        ids_mask: Indices of the masked patches, (B, M).
        grid: Rows and columns of patches.
        weighted: False for weights of one.

    Returns:
        Tensor (B, M), float32, in the order of ``ids_mask``.
    """
    if not weighted:
        return torch.ones(ids_mask.shape, device=ids_mask.device)
    mask = torch.zeros(len(ids_mask), grid[0] * grid[1], device=ids_mask.device)
    mask.scatter_(1, ids_mask, 1.0)  # (B, L), 1 = masked
    around = F.avg_pool2d(mask.view(-1, 1, *grid), kernel_size=3, stride=1, padding=1)  # (B, 1, rows, columns)
    return 1.0 + around.flatten(1).gather(1, ids_mask)


def weighted_mse(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean of ``w * (prediction - target)^2`` over masked patches, in float32.

    Dividing by the number of masked patches equals the authors' mean over all patches divided by mean(mask).

    Args:
        prediction: (B, M, ...).
        target: (B, M, ...), the same shape.
        weights: (B, M).

    Returns:
        Tensor, a scalar.
    """
    error = (prediction.float() - target.float()).square().flatten(2).mean(2)  # (B, M)
    return (weights * error).mean()
