"""Histograms of oriented gradients, the target of MaskFeat."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from mmpretrain.models.selfsup.maskfeat import HOGGenerator
from pydantic import Field
from torch import Tensor

from bootmae_mm.registry import MODELS
from bootmae_mm.validation import require, validated

from ..step import Step
from ..tokens import take_patches
from .base import ModelInfo, Target

Bins = Annotated[int, Field(ge=1, le=180)]


class _HOG(HOGGenerator):
    """mmpretrain's HOG, (B, 3, H, W) -> (B, 3 * bins, cell rows, cell columns), for any grid.

    mmpretrain's own layout of the result assumes 14 x 14 patches, and its Gaussian window square images.
    """

    gaussian_kernel: Tensor

    def __init__(self, bins: int, cell: int, patch_size: int, grid: tuple[int, int]) -> None:
        super().__init__(nbins=bins, pool=cell, gaussian_window=patch_size)
        # As high as the image, it is used as it is: one window per patch.
        self.gaussian_window = grid[0] * patch_size
        self.gaussian_kernel = self.gaussian_kernel.repeat(grid)

    def _reshape(self, hog_feat: Tensor) -> Tensor:
        return hog_feat.flatten(1, 2)


@MODELS.register_module()
class HOGTarget(Target):
    """Histograms of oriented gradients of each channel, in 2 x 2 cells per patch (MaskFeat, arXiv 2112.09133).

    Args:
        info: Facts of the model; images must have three channels.
        bins: Number of orientations.
        cells: Number of cells along a side of a patch.
    """

    @validated
    def __init__(
        self, info: ModelInfo, bins: Bins = 9, cells: Annotated[int, Field(ge=1, le=16)] = 2, init_cfg: Any = None
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        require(info.in_channels == 3, f'HOG needs images with 3 channels, but in_channels is {info.in_channels}')
        fits = info.patch_size % cells == 0
        require(fits, f'patch_size {info.patch_size} must be divisible by the {cells} cells of HOG')
        self.hog = _HOG(bins, info.patch_size // cells, info.patch_size, info.grid_size)
        for name in list(self.hog._buffers):  # constants: not in checkpoints
            self.hog._non_persistent_buffers_set.add(name)
        self.cells = cells
        self.dims = 3 * bins * cells**2

    @torch.no_grad()
    def forward(self, images: Tensor, ids_mask: Tensor, step: Step | None = None) -> Tensor:
        """Histograms of the masked patches: (B, 3, H, W), (B * K, M) -> (B * K, M, 3 * bins * cells**2)."""
        with torch.autocast('cpu' if images.is_meta else images.device.type, enabled=False):
            histograms = self.hog(images.float())  # (B, 3 * bins, rows * cells, columns * cells)
        # In the order of mmpretrain: histograms, then rows and columns of cells.
        return take_patches(histograms, ids_mask, self.cells).flatten(2)
