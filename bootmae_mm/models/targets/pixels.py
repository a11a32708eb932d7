"""Pixels of the masked patches."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from bootmae_mm.registry import MODELS
from bootmae_mm.validation import validated

from ..step import Step
from ..tokens import take_patches
from .base import ModelInfo, Target


@MODELS.register_module()
class PixelTarget(Target):
    """Pixels, normalized within each patch.

    Args:
        info: Facts of the model.
        normalize: ``'channel'``: mean and biased std of each channel of the patch, as in the authors' code,
            (x - mean) / sqrt(var + 1e-5); ``'patch'``: mean and unbiased std over all channels, sqrt(var + 1e-6), as in
            MAE; ``'none'``: none (flat patches, such as the background of digits, have a std of zero).
    """

    @validated
    def __init__(
        self, info: ModelInfo, normalize: Literal['channel', 'patch', 'none'] = 'channel', init_cfg: Any = None
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.patch_size = info.patch_size
        self.normalize = normalize
        self.dims = info.in_channels * info.patch_size**2

    def mean_std(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std that normalize the target: (B, M, C, patch, patch) -> two (B, M, C or 1, 1, 1)."""
        if self.normalize == 'channel':  # the authors'
            var, mean = torch.var_mean(patches, dim=(3, 4), correction=0, keepdim=True)
            return mean, (var + 1e-5).sqrt()
        if self.normalize == 'patch':  # MAE's
            var, mean = torch.var_mean(patches, dim=(2, 3, 4), correction=1, keepdim=True)
            return mean, (var + 1e-6).sqrt()
        return patches.new_zeros(()), patches.new_ones(())

    def forward(self, images: Tensor, ids_mask: Tensor, step: Step | None = None) -> Tensor:
        """Normalized patches: (B, C, H, W), (B * K, M) -> (B * K, M, C, patch, patch)."""
        patches = take_patches(images, ids_mask, self.patch_size)  # (B * K, M, C, patch, patch)
        mean, std = self.mean_std(patches)  # (B * K, M, C or 1, 1, 1)
        return (patches - mean) / std
