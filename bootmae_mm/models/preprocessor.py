"""Images to the device, then flipped and normalized there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor

from bootmae_mm.registry import MODELS
from bootmae_mm.validation import Positive, require, validated


@MODELS.register_module()
class BootMAEDataPreprocessor(BaseDataPreprocessor):
    """Copies a collated batch to the device (images as uint8), then flips and normalizes the images.

    Args:
        mean: Mean of each channel, on the scale 0..255; 127.5 in the paper.
        std: Standard deviation of each channel, on the same scale.
        non_blocking: Copy asynchronously; needs ``pin_memory`` in the loader to have an effect.
    """

    @validated
    def __init__(
        self,
        mean: Sequence[float] = (127.5, 127.5, 127.5),
        std: Sequence[Positive] = (127.5, 127.5, 127.5),
        non_blocking: bool = True,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        same = len(mean) == len(std)
        require(same, f'mean and std must have one number per channel, but have {len(mean)} and {len(std)}')
        self.register_buffer('mean', torch.tensor(mean).view(-1, 1, 1), persistent=False)  # (C, 1, 1)
        self.register_buffer('std', torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Flip the images of ``data['inputs']``, (B, C, H, W), that ``data['flip']`` (B,) selects; normalize all.

        A second view, ``data['view']``, is treated alike.

        Other keys pass through unchanged.

        Raises:
            ConfigError: If ``inputs`` is not a batch of images with as many channels as ``mean``.
        """
        data = self.cast_data(data)
        flip = data.pop('flip', None)
        for key in ('inputs', 'view'):
            if key == 'inputs' or key in data:
                data[key] = self._normalized(data.get(key), key, flip)
        return data

    def _normalized(self, images: Any, key: str, flip: torch.Tensor | None) -> torch.Tensor:  # noqa: ANN401
        channels = len(self.mean)
        found = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        require(
            len(found) == 4 and found[1] == channels,
            f'{key} must be images of shape (B, {channels}, H, W), as mean and std of the data_preprocessor have '
            f'{channels} channels, but are {found}; channels of LoadImage, in_channels of the backbone, mean and std '
            "must agree, and the loader needs collate_fn=dict(type='bootmae_mm.collate')",
        )
        if images.dtype != torch.uint8:  # torch cannot flip uint16
            images = images.float()
        if flip is not None:
            images = torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)  # (B, C, H, W), still uint8
        return (images.float() - self.mean) / self.std
