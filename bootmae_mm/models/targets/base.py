"""The interface of targets, and what they may know of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from bootmae_mm.validation import require

from ..step import Step


@dataclass(frozen=True, eq=False)
class ModelInfo:
    """Facts of the model that :class:`BootMAE` passes to heads and targets, so that configs need not repeat them.

    Attributes:
        patch_size: Side of a patch in pixels.
        grid_size: Rows and columns of patches.
        in_channels: Channels of an image.
        mean, std: Statistics with which the data preprocessor has normalized the images, for values in 0..255; (C,).
        teacher_dims, teacher_layers: Width and depth of the teacher.
    """

    patch_size: int
    grid_size: tuple[int, int]
    in_channels: int
    mean: Tensor
    std: Tensor
    teacher_dims: int
    teacher_layers: int


class Target(BaseModule):
    """Base class: a subclass sets ``dims`` and defines ``forward``.

    The branches do not train a target. One that learns itself computes its own loss (``step.target_loss``).

    Attributes:
        dims: Numbers per patch that the head has to predict; for codes, the size of the codebook.
        kind: ``'numbers'``; ``'codes'``, one per patch; or ``'distributions'`` over codes. The loss must be for it.
        uses_teacher: Whether ``forward`` needs the model's teacher.
        top_k: Number of the teacher's last blocks that it needs.
        branch: Name of a branch whose errors it needs.
    """

    dims: int
    kind: str = 'numbers'
    uses_teacher: bool = False
    top_k: int = 1
    branch: str = ''

    def forward(self, images: Tensor, ids_mask: Tensor, step: Step | None = None) -> Tensor:
        """Compute the targets of the masked patches.

        Args:
            images: Normalized images, (B, C, H, W).
            ids_mask: Indices of the masked patches, (B * K, M), for K masks per image, usually 1.
            step: What the parts of a step share: the teacher's view of the images, errors of earlier branches.

        Returns:
            Numbers (B * K, M, ...), or codes (B * K, M), int64.
        """
        raise NotImplementedError


class ImagesFor(BaseModule):
    """Images as another network wants them: with its normalization, and resized (bicubic) to its size.

    Args:
        info: Facts of the model.
        patch_size: Side of its patches in pixels; it gets as many of them as the student has.
        mean: Mean of its images by channel, for values in 0..255.
        std: Standard deviation of its images by channel.
    """

    def __init__(self, info: ModelInfo, patch_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        rows, columns = info.grid_size
        self.size = (rows * patch_size, columns * patch_size)
        channels = info.in_channels
        same = len(mean) == len(std) == channels
        require(same, f'mean and std of the target must have {channels} numbers, but have {len(mean)} and {len(std)}')
        own_mean, own_std = info.mean.double(), info.std.double()
        scale = own_std / torch.tensor(std, dtype=torch.float64)  # (C,)
        shift = (own_mean - torch.tensor(mean, dtype=torch.float64)) / torch.tensor(std, dtype=torch.float64)
        self.register_buffer('scale', scale.float()[:, None, None], persistent=False)  # (C, 1, 1)
        self.register_buffer('shift', shift.float()[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, *size)."""
        images = images * self.scale + self.shift
        if tuple(images.shape[2:]) == self.size:
            return images
        return F.interpolate(images, self.size, mode='bicubic', antialias=True)
