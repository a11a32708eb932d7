"""Images to the device, then flipped and normalised there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor

from bootmae_mm.registry import MODELS
from bootmae_mm.values import number


@MODELS.register_module()
class BootMAEDataPreprocessor(BaseDataPreprocessor):
    """Copies a collated batch to the device as it is (images as uint8), then flips and normalises the images.

    Args:
        mean: Of each channel, on the scale 0..255; 127.5 in the paper.
        std: Likewise.
        non_blocking: Copy without waiting; needs ``pin_memory`` in the loader to have an effect.
    """

    def __init__(
        self,
        mean: Sequence[float] = (127.5, 127.5, 127.5),
        std: Sequence[float] = (127.5, 127.5, 127.5),
        non_blocking: bool = True,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        good = not isinstance(mean, str) and not isinstance(std, str) and len(mean) == len(std)
        if not good or any(number(value, 'std') <= 0 for value in std):
            raise ValueError(f'mean and std need one number a channel and std > 0, but are {mean} and {std}')
        for value in mean:
            number(value, 'mean')
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Mirror those of ``data['inputs']``, (B, C, H, W) in RGB, that ``data['flip']`` (B,) says, and normalise all.

        Other keys go through untouched.

        Raises:
            ValueError: If there is no batch of images, or its number of channels differs from that of ``mean``.
        """
        data = self.cast_data(data)
        images = data.get('inputs')
        if isinstance(images, torch.Tensor) and images.dim() == 4 and images.shape[1] != len(self.mean):
            raise ValueError(
                f'the images have {images.shape[1]} channels, but mean and std of the data_preprocessor are for '
                f'{len(self.mean)}; channels of LoadRGB, in_channels of the backbone, mean and std must agree'
            )
        if not isinstance(images, torch.Tensor) or images.dim() != 4:
            found = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
            raise ValueError(
                f'inputs must be a batch of images (B, {len(self.mean)}, H, W), but are {found}; '
                "is collate_fn=dict(type='bootmae_mm.collate') set in the loader?"
            )
        if images.dtype != torch.uint8:  # torch can flip no uint16
            images = images.float()
        flip = data.pop('flip', None)
        if flip is not None:
            images = torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)
        data['inputs'] = (images.float() - self.mean) / self.std
        return data
