"""A pretrained encoder with its preprocessing: from a picture to tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from bootmae_mm.data.decoding import Decoding, decode, finished
from bootmae_mm.data.transforms import resize_for_test
from bootmae_mm.data.values import Values
from bootmae_mm.engine.recovery import checkpoint_in
from bootmae_mm.export.exporting import read_encoder
from bootmae_mm.export.preprocessing import Preprocessing, read_preprocessing
from bootmae_mm.models import BootMAEViT
from bootmae_mm.validation import ConfigError, MissingFileError, require

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # Pillow's, by channels
Picture = str | os.PathLike | Image.Image | np.ndarray


class Tokens(NamedTuple):
    """Output of an :class:`Encoder`.

    Attributes:
        cls: Class token, (B, D).
        patches: Patch tokens in the order of rows, (B, L, D).
        mean: Mean of the patch tokens, (B, D); the usual feature of an image.
    """

    cls: Tensor
    patches: Tensor
    mean: Tensor


class Encoder(nn.Module):
    """A pretrained encoder that takes pictures.

    The tokens are those after the final norm; of an encoder fine-tuned with a norm after the mean, those before it, and
    ``mean`` is normed.

    Args:
        backbone: Encoder from :func:`bootmae_mm.export.exporting.read_encoder`.
        preprocessing: Preprocessing of its run.

    Attributes:
        embed_dims: Width D of the tokens.
        img_size: Height and width of the images in pixels.
        grid_size: Rows and columns of patches.
        channels: Channels of an image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: BootMAEViT, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.is_pooled = backbone.out_type == 'avg_featmap'
        backbone.out_type = 'raw'
        self.backbone = backbone
        self.preprocessing = preprocessing
        self.embed_dims: int = backbone.embed_dims
        self.img_size: tuple[int, int] = tuple(backbone.img_size)
        self.grid_size = backbone.grid_size
        self.channels = backbone.in_channels
        self.decoding = Decoding(
            channels=self.channels,
            value_range=preprocessing.value_range,
            bands=preprocessing.bands,
            dtype=preprocessing.dtype,
        )
        for name in ('mean', 'std'):
            values = 255 * torch.tensor(getattr(preprocessing, name))[:, None, None]  # (C, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.train(False)

    def preprocess(self, picture: Picture) -> Tensor:
        """Make a picture an input of the encoder: resize, center crop, normalize.

        Args:
            picture: Path of an image file, a picture of Pillow, or an array (H, W, C) or (H, W) with the channels and
                values of the files that the run saw, colors in RGB.

        Returns:
            float32 (C, height, width).

        Raises:
            MissingFileError: If there is no such file.
            ConfigError: If the image has other channels than the encoder, or values that need a range.
        """
        pixels = self.resized(self._pixels(picture))
        return self.normalize(torch.from_numpy(pixels).to(self.mean.device).permute(2, 0, 1))

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images 0..255 of any type: (..., C, H, W) -> float32 (..., C, H, W)."""
        return (images.float() - self.mean) / self.std

    def _pixels(self, picture: Picture) -> np.ndarray:
        """Values 0..255, (H, W, C)."""
        mode = MODES.get(self.channels)
        if isinstance(picture, (str, os.PathLike)):
            if not Path(picture).is_file():
                raise MissingFileError(f'no image {picture}')
            return decode(Path(picture).read_bytes(), self.decoding)
        if isinstance(picture, Image.Image):
            require(mode, f'pictures of Pillow have 1, 3 or 4 channels, the encoder {self.channels}: give an array')
            return np.atleast_3d(np.asarray(ImageOps.exif_transpose(picture).convert(mode)))
        require(np.ndim(picture) in (2, 3), f'an array must be (height, width, channels), but is {np.shape(picture)}')
        return finished(Values(np.atleast_3d(picture)), self.decoding)

    def resized(self, pixels: np.ndarray) -> np.ndarray:
        """Resize such that the crop covers ``crop_pct`` of the shorter side (of both, to squash), and crop the center.

        Args:
            pixels: Values 0..255, (H, W, C).

        Returns:
            The same type, (height, width, C).
        """
        height, width = self.img_size
        wanted = round(height / self.preprocessing.crop_pct), round(width / self.preprocessing.crop_pct)
        # The side that fits exactly, and the other one, rounded down as in mmpretrain's ResizeEdge.
        rows, columns = pixels.shape[:2]
        if self.preprocessing.squash:
            size = wanted
        elif wanted[0] * columns >= wanted[1] * rows:
            size = (wanted[0], max(int(wanted[0] * columns / rows), width))
        else:
            size = (max(int(wanted[1] * rows / columns), height), wanted[1])
        pixels = resize_for_test(pixels, size, self.preprocessing.interpolation)
        top, left = max(0, round((size[0] - height) / 2)), max(0, round((size[1] - width) / 2))
        return np.ascontiguousarray(pixels[top : top + height, left : left + width])

    def forward(self, images: Tensor | Picture | Sequence[Picture]) -> Tokens:
        """Encode images.

        Args:
            images: A picture or a list of them (see :meth:`preprocess`); or a batch of inputs that are preprocessed
                already, float (B, C, height, width), or still 0..255, uint8 (B, C, height, width).

        Returns:
            The tokens, on the device of the encoder. With gradients, unless ``torch.no_grad()`` is on.

        Raises:
            ConfigError: If the batch has another shape.
        """
        if not isinstance(images, Tensor):
            one = isinstance(images, (str, os.PathLike, Image.Image, np.ndarray))
            pictures: list[Picture] = [images] if one else list(images)  # type: ignore[list-item, arg-type]
            require(len(pictures) > 0, 'the list of pictures is empty')
            device = self.mean.device
            images = torch.stack([self.preprocess(picture).to(device) for picture in pictures])  # (B, C, H, W)
        shape = (len(images), self.channels, *self.img_size)
        fits = images.dim() == 4 and tuple(images.shape) == shape
        require(fits, f'a batch must be {("B", *shape[1:])}, but is {tuple(images.shape)}')
        if images.dtype == torch.uint8:
            images = self.normalize(images)
        tokens = self.backbone(images)[0]  # (B, 1 + L, D)
        patches = tokens[:, 1:]
        mean = patches.mean(dim=1)
        return Tokens(tokens[:, 0], patches, self.backbone.ln2(mean) if self.is_pooled else mean)


def load_encoder(path: str | Path, config: str | Path | None = None, prefix: str | None = None) -> Encoder:
    """Load an encoder with its preprocessing.

    Args:
        path: A checkpoint, or the work_dir of a run, of which the last checkpoint is used.
        config: Path of the run's config; by default the one in the checkpoint.
        prefix: ``'backbone.'`` for the student (default), ``'teacher.'`` for the momentum encoder.

    Returns:
        The encoder in eval mode, on the CPU: ``encoder(picture).mean``.

    Raises:
        MissingFileError: If there is no such file.
        ConfigError: If it is not a checkpoint, or not all weights of the encoder are in it.
    """
    checkpoint = checkpoint_in(path)
    backbone = read_encoder(checkpoint, config, prefix)
    if backbone.cls_token is None:
        raise ConfigError(f'{path} has no class token')
    return Encoder(backbone, read_preprocessing(checkpoint, config, backbone.in_channels))
