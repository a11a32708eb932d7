"""The step of a pipeline that reads image files."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import mmengine.fileio
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.logging import print_log
from pydantic import AfterValidator, BeforeValidator, Field

from bootmae_mm.registry import TRANSFORMS
from bootmae_mm.validation import ConfigError, Count, Pair, Size, require, validated

from .decoding import PILLOW_LIMIT, Decoding, UnreadableImageError, ValueRangeError, decode


def _range_of_bits(value: Any) -> Any:
    """Smallest and largest value of a number of bits; anything else is returned as it is."""
    is_bits = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 32
    return (0.0, 2.0**value - 1) if is_bits else value


def _check_order(value: tuple[float, float]) -> tuple[float, float]:
    require(value[0] < value[1], f'must be (low, high) with low < high, but is {value}')
    return value


ValueRange = Annotated[Pair[float], BeforeValidator(_range_of_bits), AfterValidator(_check_order)]


@TRANSFORMS.register_module()
class LoadRGB(BaseTransform):
    """Reads ``img_path`` into ``img``, uint8 (H, W, 3) in RGB; or ``img_bytes``; or keeps an ``img`` that is there.

    An ``img`` without ``img_path`` comes from an inferencer of mmpretrain, and is taken as BGR.

    Orientation tags are applied, other modes (gray, palette, CMYK) are converted, the first frame of an animation is
    used, transparency is dropped. The format is recognized by the content of the file, not by its name.

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
        channels: 3 for RGB, 1 for gray, 4 for files with four channels (RGBA). ``in_channels`` of the backbone, and
            ``mean`` and ``std`` of the data_preprocessor, must match.
        value_range: For files with more than 8 bits per channel: the values that become 0 and 255, such as
            ``(-1000, 2000)`` for CT; or a number of bits, such as 12 for ``(0, 4095)``. Values outside are clipped. By
            default ``(0, 65535)`` for unsigned 16-bit files; all others need it. A warning, once per process, tells if
            a file uses less than an eighth of the range.

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
        channels: Literal[1, 3, 4] = 3,
        value_range: ValueRange | None = None,
    ) -> None:
        require(min_edge is None or backend == 'auto', f"min_edge needs backend 'auto', but it is {backend!r}")
        has_range = value_range is None or backend in ('auto', 'pillow')
        require(has_range, f"value_range needs backend 'auto' or 'pillow', but it is {backend!r}")
        self.decoding = Decoding(backend, max_pixels, min_edge, channels, value_range, self._notice_range)
        self.crop_size = crop_size
        self.backend_args = backend_args
        self._warned = self._warned_of_range = False

    def _notice_range(self, smallest: float, largest: float, given: tuple[float, float]) -> None:
        if not self._warned_of_range and largest - smallest < (given[1] - given[0]) / 8:
            self._warned_of_range = True
            if smallest == largest:
                found = f'most values of an image lie outside of {given[0]:g} to {given[1]:g}'
            else:
                found = f'an image uses only the values {smallest:g} to {largest:g} of {given[0]:g} to {given[1]:g}'
            # One warning per process: usually all files of a data set are alike.
            advice = 'few gray levels are left; set value_range in LoadRGB (logged once)'
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
            elif 'img' in results:  # pixels of a pack
                img = results['img']
                if self.decoding.value_range is not None:
                    raise ValueRangeError('the pack holds 8 bits already: value_range has no effect on it')
            else:
                img = decode(results['img_bytes'] if 'img_bytes' in results else self._read(path), self.decoding)
        except ValueRangeError as error:
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
