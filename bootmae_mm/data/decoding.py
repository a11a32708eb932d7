"""From the bytes of an image file to pixels: colors, orientation, size limits."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import mmcv
import numpy as np
from PIL import Image, ImageOps

from bootmae_mm.validation import ConfigError, require

from .array_files import TIFF, read_array
from .values import Limits, Values, scaled, with_channels

# Pillow refuses larger images (twice its MAX_IMAGE_PIXELS).
PILLOW_LIMIT = 178_956_970
# Formats that Pillow may try; others are left out because EPS, for one, would start another program.
PILLOW_FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP', 'TIFF', 'PPM', 'GIF')

PNG = b'\x89PNG\r\n\x1a\n'  # signature of the file format

# OpenCV's flags to decode a JPEG file at a fraction of its size, without the bit for BGR.
REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_COLOR_2 & ~cv2.IMREAD_COLOR,
    4: cv2.IMREAD_REDUCED_COLOR_4 & ~cv2.IMREAD_COLOR,
    8: cv2.IMREAD_REDUCED_COLOR_8 & ~cv2.IMREAD_COLOR,
}


class UnreadableImageError(ConfigError):
    """An image file that cannot be decoded.

    Args:
        path: Path of the file.
        reason: Message of the decoder.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that the error can be pickled in a worker
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f'{self.path}: {self.reason}'


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width in the header of a JPEG file; None if it has none. (Ten times as fast as Pillow.)"""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            return struct.unpack('>HH', data[place + 5 : place + 9])
        elif marker in (0x01, *range(0xD0, 0xDA)):  # markers without a length
            place += 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], 'big')
    return None


@dataclass(frozen=True)
class Decoding:
    """Decoding options; see :class:`LoadImage`.

    Attributes:
        backend: Decoder.
        max_pixels: Number of pixels of the largest image allowed.
        min_edge: Shorter side to keep when a JPEG file is decoded at a fraction of its size, or None.
        channels: Number of channels of the result.
        value_range: Values that become 0 and 255 in files with more than 8 bits per channel, for all channels or for
            each; or None.
        notice: Callback for such files, see :func:`bootmae_mm.data.values.scaled`.
        bands: Channels of the file to use, counted from 0; None for all.
        dtype: Type of the result, ``'uint8'`` or ``'float32'``.
    """

    backend: str = 'auto'
    max_pixels: int = PILLOW_LIMIT
    min_edge: int | None = None
    channels: int = 3
    value_range: Limits | Sequence[Limits] | None = None
    notice: Callable[[float, float, Limits], None] | None = None
    bands: Sequence[int] | None = None
    dtype: str = 'uint8'


def decode(data: bytes, options: Decoding = Decoding()) -> np.ndarray:  # noqa: B008  frozen
    """Decode an image file into (H, W, channels), 0..255, colors in RGB.

    Raises:
        LoadingError: If the file has signed, 32-bit or floating-point pixels and no range is given, or a package is
            missing.
        Exception: Errors of the decoder for a broken file; ConfigError for too many pixels or other channels.
    """
    # OpenCV before 5 fills the missing part of a truncated file with gray; Pillow refuses the file.
    is_complete_jpeg = data.startswith(b'\xff\xd8') and b'\xff\xd9' in data[-1024:]
    if options.backend == 'auto' and options.channels == 3 and options.bands is None and is_complete_jpeg:
        size = jpeg_size(data)
        if size is not None:
            _check_size(*size, options.max_pixels)
            # The largest reduction that keeps min_edge pixels.
            factor = next((n for n in (8, 4, 2) if options.min_edge and min(size) >= n * options.min_edge), 1)
            img = _decode_jpeg(data, factor)
            if img is not None:
                return img if options.dtype == 'uint8' else img.astype(np.float32)
    return finished(_values(data, options, options.channels), options)


def finished(image: Values, options: Decoding) -> np.ndarray:
    """The channels wanted, on the scale 0..255: (H, W, channels)."""
    values = with_channels(image, options.channels, options.bands)
    return scaled(values, options.value_range, options.dtype, image.inverted, image.bits, options.notice)


def raw_values(data: bytes, options: Decoding = Decoding()) -> Values:  # noqa: B008  frozen
    """Values and channels as they are in a file."""
    return _values(data, options, None)


def _values(data: bytes, options: Decoding, channels: int | None) -> Values:
    """Values as they are in a file, with the channels that are wanted if the file's mode is made for it."""
    channels = None if options.bands is not None else channels
    if options.backend in ('auto', 'pillow'):
        array = read_array(data, channels, partial(_check_size, max_pixels=options.max_pixels))
        if array is not None:
            return array
    try:
        image = _open(data, options)
    except ValueError:  # Pillow refuses long texts; if something else is wrong, this raises again
        image = _open(without_texts(data), options)
    with image:
        if options.backend not in ('auto', 'pillow'):
            flag = {1: 'grayscale', 3: 'color'}.get(channels or 0, 'unchanged')
            img = mmcv.imfrombytes(data, flag=flag, channel_order='rgb', backend=options.backend)
            assert img is not None, 'not an image'
            return Values(np.atleast_3d(img))
        if not data.startswith(TIFF) and _is_sixteen_bit(data):
            return _sixteen_bit(data)
        return _pixels(image, channels)


def _check_size(height: int, width: int, max_pixels: int) -> None:
    fits = height * width <= max_pixels
    require(fits, f'{height} x {width} pixels are more than max_pixels={max_pixels} allows')


def _decode_jpeg(data: bytes, factor: int) -> np.ndarray | None:
    if hasattr(cv2, 'IMREAD_COLOR_RGB'):  # since OpenCV 4.11: no swap of the colors afterwards
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | REDUCED[factor])
    img = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | REDUCED[factor])
    return None if img is None else cv2.cvtColor(img, cv2.COLOR_BGR2RGB)


def _open(data: bytes, options: Decoding) -> Image.Image:
    """Open an image with Pillow, and load its pixels if Pillow is the decoder."""
    image = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)  # reads the header
    _check_size(image.height, image.width, options.max_pixels)
    if options.backend in ('auto', 'pillow'):
        image.load()
    return image


def _is_sixteen_bit(data: bytes) -> bool:
    """Whether a PNG, PGM or PPM file has 16 bits per channel, which Pillow would reduce to 8 or stretch."""
    if data.startswith(PNG):
        return len(data) > 24 and data[24] == 16
    header = re.match(rb'P[2356]\s+(?:#[^\n]*\s+)*\d+\s+\d+\s+(\d+)\s', data)
    return header is not None and int(header[1]) > 255


def _sixteen_bit(data: bytes) -> Values:
    """Decode an unsigned 16-bit file with OpenCV, which keeps its values."""
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert values is not None and values.dtype == np.uint16, 'not an image'  # the reason that LoadImage reports
    values = np.atleast_3d(values)  # (H, W, C)
    is_color = values.shape[2] > 2
    if is_color:  # BGR or BGRA
        values = values[:, :, [2, 1, 0, *range(3, values.shape[2])]]
    return Values(values, is_color, has_alpha=values.shape[2] in (2, 4))


def without_texts(data: bytes) -> bytes:
    """A PNG file without its color profile and texts, which Pillow refuses above 1 MB; the pixels are the same."""
    if not data.startswith(PNG):
        return data
    kept, place = [PNG], len(PNG)
    while place + 12 <= len(data):  # chunks: length, type, content, checksum
        end = place + 12 + int.from_bytes(data[place : place + 4], 'big')
        if data[place + 4 : place + 8] not in (b'iCCP', b'tEXt', b'zTXt', b'iTXt'):
            kept.append(data[place:end])
        place = end
    return b''.join(kept)


def _upright(image: Image.Image) -> Image.Image:
    """The image rotated by its EXIF orientation; unchanged if the EXIF block is broken."""
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
        return image


def _pixels(image: Image.Image, channels: int | None) -> Values:
    """Pixels of the first frame, converted to 1, 3 or 4 channels if these are wanted."""
    upright = _upright(image)  # a copy, without the file's tags
    if image.mode.startswith('I') or image.mode == 'F':
        return Values(_deep_values(upright, image)[:, :, None])
    has_transparency = 'transparency' in image.info
    wanted = {1: 'L', 3: 'RGB', 4: 'RGBA'}.get(channels or 0)
    if wanted is None or (wanted == 'RGBA' and not has_transparency):
        # The channels of the file, of which none is made up.
        wanted = {'P': 'RGBA' if has_transparency else 'RGB', '1': 'L'}.get(image.mode, image.mode)
    values = np.atleast_3d(np.array(upright if wanted == upright.mode else upright.convert(wanted)))
    return Values(values, has_alpha=wanted in ('LA', 'RGBA', 'PA'))


def _deep_values(image: Image.Image, source: Image.Image) -> np.ndarray:
    """Values of a gray image with more than 8 bits, in the type of its file (source); Pillow gives most as int32."""
    values = np.asarray(image)
    if source.format != 'TIFF':  # PNG and PGM are unsigned 16-bit
        return values.astype(np.uint16) if values.dtype.kind in 'iu' else values
    bits, kind = (_first(source.tag_v2.get(tag, default)) for tag, default in ((258, 32), (339, 1)))  # type: ignore[attr-defined]
    if kind == 3:
        return values
    if kind == 1 and bits == 32:
        return values.view(np.uint32)
    return values.astype(f'{"u" if kind == 1 else ""}int{max(bits, 16)}')


def _first(value: int | tuple[int, ...]) -> int:
    return value[0] if isinstance(value, tuple) else value
