"""The two heads: prediction, target and weighted loss, for masked patches only."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from bootmae_mm.registry import MODELS
from bootmae_mm.validation import Positive, Side, validated

from .losses import weighted_mse
from .tokens import take_patches


@MODELS.register_module()
class BootMAEPixelHead(BaseModule):
    """Predicts the pixels of masked patches.

    Args:
        in_channels: Width of the pixel regressor; :class:`BootMAE` fills in this and the next two.
        patch_size: Side of a patch in pixels.
        out_channels: Channels of an image.
        normalize: Normalization of the target. ``'channel'``: mean and biased std of each channel of the patch, as in
            the authors' code, (x - mean) / sqrt(var + 1e-5); ``'patch'``: mean and unbiased std over all channels,
            sqrt(var + 1e-6), as in MAE; ``'none'``: none (flat patches, such as the background of digits, have a std
            of zero).
    """

    @validated
    def __init__(
        self,
        in_channels: Side,
        patch_size: Side,
        out_channels: Side = 3,
        normalize: Literal['channel', 'patch', 'none'] = 'channel',
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.patch_size = patch_size
        self.normalize = normalize
        # Parameters in the authors' shapes; with a stride equal to the kernel it is one linear map per patch.
        self.projection = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=patch_size, stride=patch_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, M, in_channels) -> (B, M, C, patch, patch)."""
        weight = self.projection.weight  # (in_channels, C, patch, patch)
        bias = self.projection.bias[:, None, None].expand(weight.shape[1:])  # (C, patch, patch)
        return F.linear(tokens, weight.flatten(1).t(), bias.flatten()).unflatten(2, weight.shape[1:])

    def statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std that normalize the target: (B, M, C, patch, patch) -> two (B, M, C or 1, 1, 1)."""
        if self.normalize == 'channel':  # the authors'
            var, mean = torch.var_mean(patches, dim=(3, 4), correction=0, keepdim=True)
            return mean, (var + 1e-5).sqrt()
        if self.normalize == 'patch':  # MAE's
            var, mean = torch.var_mean(patches, dim=(2, 3, 4), correction=1, keepdim=True)
            return mean, (var + 1e-6).sqrt()
        return patches.new_zeros(()), patches.new_ones(())

    def target(self, images: Tensor, ids_mask: Tensor) -> Tensor:
        """Normalized patches: (B, C, H, W), (B, M) -> (B, M, C, patch, patch)."""
        patches = take_patches(images, ids_mask, self.patch_size)  # (B, M, C, patch, patch)
        mean, std = self.statistics(patches)  # (B, M, C or 1, 1, 1)
        return (patches - mean) / std

    def loss(self, tokens: Tensor, images: Tensor, ids_mask: Tensor, weights: Tensor) -> Tensor:
        """Weighted squared error.

        Args:
            tokens: Decoded tokens, (B, M, in_channels).
            images: (B, C, H, W).
            ids_mask: (B, M).
            weights: (B, M).

        Returns:
            Tensor, a scalar.
        """
        return weighted_mse(self(tokens), self.target(images, ids_mask), weights)


@MODELS.register_module()
class BootMAEFeatureHead(BaseModule):
    """Predicts the teacher's features of masked patches.

    Args:
        in_channels: Width of the feature predictor; :class:`BootMAE` fills in this and the next.
        out_channels: Width of the teacher.
        eps: Epsilon of the norm without affine parameters that prediction and target go through.
    """

    @validated
    def __init__(self, in_channels: Side, out_channels: Side, eps: Positive = 1e-6, init_cfg: Any = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.projection = nn.Linear(in_channels, out_channels)
        self.eps = eps

    def init_weights(self) -> None:
        """Xavier-uniform weight and zero bias, as in the authors' code."""
        super().init_weights()
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, M, in_channels) -> (B, M, out_channels)."""
        return self.projection(tokens)

    def target(self, features: Tensor) -> Tensor:
        """LayerNorm without affine parameters, in float32: (B, M, D) -> (B, M, D)."""
        return F.layer_norm(features.float(), features.shape[-1:], eps=self.eps)

    def loss(self, prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        """Weighted squared error of normalized features.

        Args:
            prediction: Output of :meth:`forward`, (B, M, D).
            target: The teacher's features after :meth:`target`, (B, M, D), without gradient.
            weights: (B, M).

        Returns:
            Tensor, a scalar.
        """
        return weighted_mse(self.target(prediction), target, weights)
