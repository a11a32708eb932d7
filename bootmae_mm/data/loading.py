"""The step of a pipeline that reads image files."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import mmengine.fileio
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.logging import print_log
from pydantic import Field

from bootmae_mm.registry import TRANSFORMS
from bootmae_mm.validation import ConfigError, Count, Size, require, validated

from .decoding import PILLOW_LIMIT, Decoding, UnreadableImageError, decode, finished
from .values import Bands, Channels, DType, Limits, LoadingError, ValueRange, Values


@TRANSFORMS.register_module(name=['LoadImage', 'LoadRGB'])  # the second name is that of older configs
class LoadImage(BaseTransform):
    """Reads ``img_path`` into ``img``, uint8 (H, W, channels); or ``img_bytes``; or keeps an ``img`` that is there.

    Reads what Pillow reads, with colors in RGB, and arrays with any number of channels and any type of values: TIFF
    with many bands or deep colors (by tifffile), NPY files (H, W), (H, W, C) or (C, H, W), DICOM (by pydicom). The
    packages for TIFF and DICOM come with ``pip install 'bootmae_mm[images]'``.

    An ``img`` without ``img_path`` comes from an inferencer of mmpretrain, and is taken as BGR.

    Orientation tags are applied, other modes (gray, palette, CMYK) are converted, the first frame of an animation is
    used, transparency is dropped. In DICOM files, slope and intercept are applied, and what they call white is white.
    The format is recognized by the content of the file, not by its name.

    Args:
        crop_size: Height and width of the crop that follows, to warn once per process of an image that the crop
            enlarges; None for no warning.
        backend: Decoder. ``'auto'``: OpenCV for JPEG files, which is faster and gives the pixels of Pillow (CMYK within
            1 of 255), and Pillow for all others. Or one of mmcv's decoders for all files.
        backend_args: Arguments of mmengine's file client, for images outside the local file system.
        min_edge: For large photographs: decode a JPEG file at 1/2, 1/4 or 1/8 of its size, as long as its shorter side
            keeps this many pixels. Not the same pixels as at full size: small crops are enlarged from fewer pixels.
            None, the default, for full size; needs ``'auto'``.
        max_pixels: Number of pixels of the largest image; larger ones are refused before they are decoded, as a file of
            a few kB may take all memory. At most 178,956,970, Pillow's own limit.
        channels: Number of channels: 3 for RGB, 1 for gray, others for files that have as many. ``in_channels`` of the
            backbone, and ``mean`` and ``std`` of the data_preprocessor, must match; the base configs see to it.
        value_range: For files with more than 8 bits per channel: the values that become 0 and 255, such as
            ``(-1000, 2000)`` for CT; or a number of bits, such as 12 for ``(0, 4095)``; or a list with one of these for
            each channel. Values outside are clipped. By default ``(0, 65535)`` for unsigned 16-bit files (of DICOM, the
            bits stored); all others need it. A warning, once per process, tells if a file uses less than an eighth of
            the range. ``bootmae stats`` measures the values of a folder.
        bands: Channels of the file to use, counted from 0, such as ``(3, 2, 1)`` for red, green, blue of Sentinel-2;
            ``channels`` many. By default all.
        dtype: ``'uint8'``: 256 levels; ``'float32'`` keeps what lies between two levels, in four times the memory.

    Raises:
        UnreadableImageError: If the file cannot be read or decoded, or has other channels.
        ConfigError: If ``min_edge`` or ``value_range`` is given with a backend without it; for an image that needs a
            ``value_range``.
    """

    @validated
    def __init__(
        self,
        crop_size: Size | None = None,
        backend: Literal['auto', 'pillow', 'cv2', 'turbojpeg'] = 'auto',
        backend_args: dict | None = None,
        min_edge: Count | None = None,
        max_pixels: Annotated[int, Field(ge=1, le=PILLOW_LIMIT)] = 100_000_000,
        channels: Channels = 3,
        value_range: ValueRange | None = None,
        bands: Bands | None = None,
        dtype: DType = 'uint8',
    ) -> None:
        require(min_edge is None or backend == 'auto', f"min_edge needs backend 'auto', but it is {backend!r}")
        has_range = value_range is None or backend in ('auto', 'pillow')
        require(has_range, f"value_range needs backend 'auto' or 'pillow', but it is {backend!r}")
        fits = bands is None or len(bands) == channels
        require(fits, f'bands must be {channels} numbers, one for each of the channels, but is {bands}')
        self.decoding = Decoding(backend, max_pixels, min_edge, channels, value_range, self._notice_range, bands, dtype)
        self.crop_size = crop_size
        self.backend_args = backend_args
        self._warned = self._warned_of_range = False

    def _notice_range(self, smallest: float, largest: float, given: Limits) -> None:
        if not self._warned_of_range and largest - smallest < (given[1] - given[0]) / 8:
            self._warned_of_range = True
            if smallest == largest:
                found = f'most values of an image lie outside of {given[0]:g} to {given[1]:g}'
            else:
                found = f'an image uses only the values {smallest:g} to {largest:g} of {given[0]:g} to {given[1]:g}'
            # One warning per process: usually all files of a data set are alike.
            advice = 'few gray levels are left; set value_range in LoadImage (logged once)'
            print_log(f'{found}, which become 0 and 255: {advice}', logger='current', level=30)

    def _read(self, path: str) -> bytes:
        if self.backend_args is None and '://' not in path:  # mmengine's client would double the time
            with open(path, 'rb') as file:
                return file.read()
        return mmengine.fileio.get(path, backend_args=self.backend_args)

    def transform(self, results: dict) -> dict:
        """Add ``img``, ``img_shape`` and ``ori_shape``."""
        path = results.get('img_path', 'an image')
        try:
            if 'img' in results and 'img_path' not in results:  # of mmpretrain's inferencers, which read BGR
                img = results['img'][:, :, ::-1]
            elif 'img' in results:  # pixels of a NumPy file in an archive
                img = finished(Values(results['img']), self.decoding)
            else:
                img = decode(results['img_bytes'] if 'img_bytes' in results else self._read(path), self.decoding)
        except LoadingError as error:
            raise ConfigError(f'{path}: {error}') from error
        except Exception as error:  # noqa: BLE001  decoders raise anything on a broken file
            reason = re.sub(r' ?<[^<>]* at 0x[0-9a-f]+>', '', str(error))  # Pillow names its buffer
            raise UnreadableImageError(path, reason or type(error).__name__) from error
        if self.crop_size and not self._warned and np.less(img.shape[:2], self.crop_size).any():
            self._warned = True
            print_log(
                f'{path} is {img.shape[0]}x{img.shape[1]}, smaller than the crop of '
                f'{self.crop_size[0]}x{self.crop_size[1]}: such images are enlarged (logged once)',
                logger='current',
                level=30,
            )
        img = np.ascontiguousarray(img)  # (H, W, C)
        results.update(img=img, img_shape=img.shape[:2], ori_shape=img.shape[:2])
        return results
