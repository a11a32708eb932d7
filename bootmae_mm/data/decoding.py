"""From the bytes of an image file to pixels: colors, orientation, value ranges, size limits."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import mmcv
import numpy as np
from PIL import Image, ImageOps

from bootmae_mm.validation import ConfigError, require

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
    """Decoding options; see :class:`LoadRGB`.

    Attributes:
        backend: Decoder.
        max_pixels: Number of pixels of the largest image allowed.
        min_edge: Shorter side to keep when a JPEG file is decoded at a fraction of its size, or None.
        channels: Number of channels of the result.
        value_range: Values that become 0 and 255 in files with more than 8 bits per channel, or None.
        notice: Callback for such files: smallest and largest value within the range, and the range. If most values
            lie outside, the smallest and the largest are the same.
    """

    backend: str = 'auto'
    max_pixels: int = PILLOW_LIMIT
    min_edge: int | None = None
    channels: int = 3
    value_range: tuple[float, float] | None = None
    notice: Callable[[float, float, tuple[float, float]], None] | None = None


class ValueRangeError(ConfigError):
    """Pixels that need a ``value_range``; the config is wrong, not the file."""


def decode(data: bytes, options: Decoding = Decoding()) -> np.ndarray:  # noqa: B008  frozen
    """Decode an image file into uint8 (H, W, channels), colors in RGB.

    Raises:
        ValueRangeError: If the file has signed, 32-bit or floating-point pixels, and no range is given.
        Exception: Errors of the decoder for a broken file; ConfigError for too many pixels or other channels.
    """
    # OpenCV before 5 fills the missing part of a truncated file with gray; Pillow refuses the file.
    is_complete_jpeg = data.startswith(b'\xff\xd8') and b'\xff\xd9' in data[-1024:]
    if options.backend == 'auto' and options.channels == 3 and is_complete_jpeg:
        size = jpeg_size(data)
        if size is not None:
            _check_size(*size, options.max_pixels)
            # The largest reduction that keeps min_edge pixels.
            factor = next((n for n in (8, 4, 2) if options.min_edge and min(size) >= n * options.min_edge), 1)
            img = _decode_jpeg(data, factor)
            if img is not None:
                return img
    try:
        image = _open(data, options)
    except ValueError:  # Pillow refuses long texts; if something else is wrong, this raises again
        image = _open(without_texts(data), options)
    with image:
        if options.backend not in ('auto', 'pillow'):
            flag = {1: 'grayscale', 3: 'color', 4: 'unchanged'}[options.channels]
            img = mmcv.imfrombytes(data, flag=flag, channel_order='rgb', backend=options.backend)
            assert img is not None, 'not an image'
            return _with_channels(np.atleast_3d(img), options.channels)
        if image.format != 'TIFF' and _is_sixteen_bit(data):
            return _sixteen_bit(data, options)
        return _pixels(image, options)


def _check_size(height: int, width: int, max_pixels: int) -> None:
    fits = height * width <= max_pixels
    require(fits, f'{height} x {width} pixels are more than max_pixels={max_pixels} allows')


def _with_channels(img: np.ndarray, channels: int) -> np.ndarray:
    """The image itself, (H, W, channels); refused if it has another number of channels."""
    require(img.shape[2] == channels, f'the file has {img.shape[2]} channels, not {channels}')
    return img


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


def _sixteen_bit(data: bytes, options: Decoding) -> np.ndarray:
    """Decode an unsigned 16-bit file with OpenCV, which keeps its values."""
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert values is not None and values.dtype == np.uint16, 'not an image'  # the reason that LoadRGB reports
    values = np.atleast_3d(values)  # (H, W, C)
    if values.shape[2] > 2:  # BGR or BGRA
        values = values[:, :, [2, 1, 0, *range(3, values.shape[2])]]
    if options.channels == 4:
        return _with_channels(_scaled(values, options), 4)
    pixels = _scaled(values, options)
    if pixels.shape[2] < 3:
        return np.repeat(pixels[:, :, :1], options.channels, axis=2)
    return pixels[:, :, :3] if options.channels == 3 else cv2.cvtColor(pixels[:, :, :3], cv2.COLOR_RGB2GRAY)[:, :, None]


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


def _pixels(image: Image.Image, options: Decoding) -> np.ndarray:
    """Pixels as uint8 (H, W, channels), of the first frame. Below 4 channels transparency is dropped."""
    upright = _upright(image)  # a copy, without the file's tags
    if image.mode.startswith('I') or image.mode == 'F':
        gray = _scaled(_deep_values(upright, image), options)[:, :, None]  # (H, W, 1)
        return _with_channels(gray, 4) if options.channels == 4 else np.repeat(gray, options.channels, axis=2)
    if options.channels == 4 and 'transparency' not in image.info:
        _with_channels(np.empty((1, 1, len(image.getbands()))), 4)
    return np.atleast_3d(np.array(upright.convert({1: 'L', 3: 'RGB', 4: 'RGBA'}[options.channels])))


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


def _scaled(values: np.ndarray, options: Decoding) -> np.ndarray:
    """Map the value range to 0..255, uint8; values outside are clipped."""
    if options.value_range is None and values.dtype != np.uint16:
        raise ValueRangeError(
            f'{values.dtype} pixels need value_range=(low, high) in LoadRGB, the values that become 0 and 255; this '
            f'file has {values.min():g} to {values.max():g}'
        )
    low, high = options.value_range or (0.0, 2.0**16 - 1)
    if options.notice is not None:
        # Of the values that are not clipped.
        inside = values[(values >= low) & (values <= high)]
        few = 2 * inside.size < values.size
        limits = (low, low) if few else (float(inside.min()), float(inside.max()))
        options.notice(*limits, (low, high))
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.nan_to_num(scaled).clip(0, 255).round().astype(np.uint8)
