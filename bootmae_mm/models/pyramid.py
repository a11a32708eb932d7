"""Feature maps of several strides from the single one of a plain vision transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.models.utils.norm import LayerNorm2d
from torch import Tensor, nn

from bootmae_mm.registry import MODELS
from bootmae_mm.validation import Count, Side, require, validated

EPS = 1e-6  # of the norms, as in ViTDet's code; torch's default is 1e-5


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """ViTDet's simple feature pyramid: all levels come from the last feature map.

    Levels of 4, 2, 1 and 1/2 times its resolution (strides 4, 8, 16, 32 for patches of 16) by transposed convolutions
    or pooling, each followed by a 1x1 and a 3x3 convolution with LayerNorm. Source: arXiv 2203.16527, section 3.

    Args:
        in_channels: Width of the backbone.
        out_channels: Channels of every level.
        scales: Resolutions of the levels relative to the input: 4, 2, 1 or 0.5.
        num_outs: Number of levels to return; those after ``scales`` subsample the last one (for the RPN).
        init_cfg: Initialization as in mmengine's ``BaseModule``; Kaiming-uniform convolutions by default.

    Raises:
        ConfigError: If there are no scales, or fewer levels than scales.
    """

    @validated
    def __init__(
        self,
        in_channels: Side,
        out_channels: Side = 256,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        num_outs: Count = 5,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        fits = 0 < len(scales) <= num_outs and set(scales) <= {4, 2, 1, 0.5}
        require(fits, f'scales must be 4, 2, 1 or 0.5, at most num_outs {num_outs} of them, but are {scales}')
        self.num_outs = num_outs
        self.levels = nn.ModuleList()
        for scale in scales:
            layers, channels = self._rescale(scale, in_channels)
            layers += [
                nn.Conv2d(channels, out_channels, kernel_size=1, bias=False),
                LayerNorm2d(out_channels, eps=EPS),
                nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
                LayerNorm2d(out_channels, eps=EPS),
            ]
            self.levels.append(nn.Sequential(*layers))

    @staticmethod
    def _rescale(scale: float, channels: int) -> tuple[list[nn.Module], int]:
        """Layers that change the resolution, and the channels after them."""
        if scale == 4:
            half, quarter = channels // 2, channels // 4
            return [
                nn.ConvTranspose2d(channels, half, kernel_size=2, stride=2),
                LayerNorm2d(half, eps=EPS),
                nn.GELU(),
                nn.ConvTranspose2d(half, quarter, kernel_size=2, stride=2),
            ], quarter
        if scale == 2:
            return [nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2)], channels // 2
        if scale == 1:
            return [], channels
        # ceil_mode: a map of one row or column is kept instead of vanishing.
        return [nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)], channels

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the levels.

        Args:
            inputs: Feature map (B, C, H, W), or several, of which the last is used.

        Returns:
            ``num_outs`` maps (B, out_channels, ., .), finest first.

        Raises:
            ConfigError: If the backbone returns something else than maps.
        """
        features = inputs if isinstance(inputs, Tensor) else inputs[-1]
        is_map = isinstance(features, Tensor) and features.dim() == 4
        require(is_map, "SimpleFeaturePyramid needs feature maps: set out_type='featmap' in the backbone")
        outs = [level(features) for level in self.levels]  # (B, out_channels, ., .) each
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], kernel_size=1, stride=2))  # every second row and column
        return tuple(outs)
