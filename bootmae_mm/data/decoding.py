"""From the bytes of an image file to pixels: colors, orientation, value ranges, limits."""

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

# Where Pillow itself refuses an image (twice its MAX_IMAGE_PIXELS).
PILLOW_LIMIT = 178_956_970
# What Pillow is to try. Not all it knows: EPS, for one, would start another program.
PILLOW_FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP', 'TIFF', 'PPM', 'GIF')

PNG = b'\x89PNG\r\n\x1a\n'  # what such a file begins with

# OpenCV's flags to decode a JPEG file at a fraction of its size, without the bit that asks for BGR.
REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_COLOR_2 & ~cv2.IMREAD_COLOR,
    4: cv2.IMREAD_REDUCED_COLOR_4 & ~cv2.IMREAD_COLOR,
    8: cv2.IMREAD_REDUCED_COLOR_8 & ~cv2.IMREAD_COLOR,
}


class UnreadableImageError(ValueError):
    """An image file that cannot be decoded.

    Args:
        path: Of the file.
        reason: What the decoder said.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that the error survives the way out of a worker
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f'{self.path}: {self.reason}'


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width in the header of a JPEG file; None if it has none. (Pillow's header takes ten times as long.)"""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a byte that fills
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the frame
            return int.from_bytes(data[place + 5 : place + 7], 'big'), int.from_bytes(
                data[place + 7 : place + 9], 'big'
            )
        elif marker in (0x01, *range(0xD0, 0xDA)):  # without a length
            place += 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], 'big')
    return None


@dataclass(frozen=True)
class Decoding:
    """How the bytes of an image file become pixels; see :class:`LoadRGB` for the meaning of each.

    Attributes:
        backend: Decoder.
        max_pixels: Largest image.
        min_edge: Shorter side to keep when a JPEG file is decoded at a fraction, or None.
        channels: Channels of the result.
        value_range: Values that become 0 and 255 in files of more than 8 bits a channel, or None.
        notice: Called with the smallest and the largest value of such a file that lie in the range, and the range; if
            most lie outside, the smallest is the largest.
    """

    backend: str = 'auto'
    max_pixels: int = PILLOW_LIMIT
    min_edge: int | None = None
    channels: int = 3
    value_range: tuple[float, float] | None = None
    notice: Callable[[float, float, tuple[float, float]], None] | None = None


class ValueRangeError(ValueError):
    """Pixels that need a ``value_range``: no single file is at fault."""


def decode(data: bytes, options: Decoding = Decoding()) -> np.ndarray:  # noqa: B008  frozen
    """Pixels of an image file, uint8 (H, W, channels), colors in RGB.

    Raises:
        ValueRangeError: If the file has signed, 32-bit or floating-point pixels, and no range is given.
        Exception: Whatever the decoder raises on a file that is broken; ValueError on one with too many pixels or other
            channels.
    """
    # OpenCV before 5 fills what is missing of a truncated file with gray; Pillow refuses it.
    is_whole_jpeg = data.startswith(b'\xff\xd8') and b'\xff\xd9' in data[-1024:]
    if options.backend == 'auto' and options.channels == 3 and is_whole_jpeg:
        size = jpeg_size(data)
        if size is not None:
            _check_size(*size, options.max_pixels)
            factor = 1 if options.min_edge is None else _reduction(min(size), options.min_edge)
            img = _decode_jpeg(data, factor)
            if img is not None:
                return img
    return _decode_any(data, options)


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ValueError(f'{height} x {width} pixels are more than max_pixels={max_pixels} allows')


def _reduction(edge: int, min_edge: int) -> int:
    """The largest of 8, 4, 2, 1 that leaves ``min_edge`` pixels."""
    return next((factor for factor in (8, 4, 2) if edge >= factor * min_edge), 1)


def _decode_jpeg(data: bytes, factor: int) -> np.ndarray | None:
    if hasattr(cv2, 'IMREAD_COLOR_RGB'):  # since OpenCV 4.11: the colours need not be swapped afterwards
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | REDUCED[factor])
    img = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | REDUCED[factor])
    return None if img is None else cv2.cvtColor(img, cv2.COLOR_BGR2RGB)


def _decode_any(data: bytes, options: Decoding) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)  # the header
    except ValueError:
        if not data.startswith(PNG):
            raise
        image = Image.open(io.BytesIO(without_texts(data)), formats=PILLOW_FORMATS)
    with image:
        _check_size(image.height, image.width, options.max_pixels)
        if options.backend in ('auto', 'pillow'):
            try:
                image.load()
            except ValueError:  # a text behind the pixels
                if not data.startswith(PNG):
                    raise
                image = Image.open(io.BytesIO(without_texts(data)), formats=PILLOW_FORMATS)
            if image.format != 'TIFF' and _is_sixteen_bit(data):
                return _sixteen_bit(data, options)
            return _pixels(image, options)
    flag = {1: 'grayscale', 3: 'color', 4: 'unchanged'}[options.channels]
    img = mmcv.imfrombytes(data, flag=flag, channel_order='rgb', backend=options.backend)
    if img is None:
        raise ValueError('not an image')
    img = img[:, :, None] if img.ndim == 2 else img
    if img.shape[2] != options.channels:
        raise ValueError(f'the file has {img.shape[2]} channels, not {options.channels}')
    return img


def _is_sixteen_bit(data: bytes) -> bool:
    """Whether a PNG, PGM or PPM file has 16 bits a channel, of which Pillow keeps 8, or stretches them."""
    if data.startswith(PNG):
        return len(data) > 24 and data[24] == 16
    header = re.match(rb'P[2356]\s+(?:#[^\n]*\s+)*\d+\s+\d+\s+(\d+)\s', data)
    return header is not None and int(header[1]) > 255


def _sixteen_bit(data: bytes, options: Decoding) -> np.ndarray:
    """Pixels of a file of 16 bits without a sign, by OpenCV, which gives the values that are in it."""
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise ValueError('not an image')
    values = values[:, :, None] if values.ndim == 2 else values
    if values.shape[2] > 2:  # BGR or BGRA
        values = values[:, :, [2, 1, 0, *range(3, values.shape[2])]]
    if options.channels == 4 and values.shape[2] != 4:
        raise ValueError(f'the file has {values.shape[2]} channels, not 4')
    pixels = _scaled(values, options)
    if options.channels == 4:
        return pixels
    if pixels.shape[2] < 3:
        return np.repeat(pixels[:, :, :1], options.channels, axis=2)
    return pixels[:, :, :3] if options.channels == 3 else cv2.cvtColor(pixels[:, :, :3], cv2.COLOR_RGB2GRAY)[:, :, None]


def without_texts(data: bytes) -> bytes:
    """A PNG file without its color profile and texts, which Pillow refuses above a MB; the pixels are the same."""
    kept, place = [PNG], len(PNG)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], 'big')
        if data[place + 4 : place + 8] not in (b'iCCP', b'tEXt', b'zTXt', b'iTXt'):
            kept.append(data[place:end])
        place = end
    return b''.join(kept)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF block says; as it is if that block is broken."""
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
        return image


def _pixels(image: Image.Image, options: Decoding) -> np.ndarray:
    """Pixels as uint8 (H, W, channels); of several frames the first. Below 4 channels transparency is dropped."""
    upright = _upright(image)  # a copy, without what the file says of its values
    if image.mode.startswith('I') or image.mode == 'F':
        gray = _scaled(_deep_values(upright, image), options)[:, :, None]  # (H, W, 1)
        if options.channels == 4:
            raise ValueError('the file has one channel, not 4')
        return np.repeat(gray, options.channels, axis=2)
    if options.channels == 4 and len(image.getbands()) != 4 and 'transparency' not in image.info:
        raise ValueError(f'the file has the channels {"".join(image.getbands())}, not 4')
    img = np.array(upright.convert({1: 'L', 3: 'RGB', 4: 'RGBA'}[options.channels]))
    return img[:, :, None] if img.ndim == 2 else img


def _deep_values(image: Image.Image, source: Image.Image) -> np.ndarray:
    """Values of a gray image of more than 8 bits in the type of its file (source); Pillow gives most as int32."""
    values = np.asarray(image)
    if source.format != 'TIFF':  # PNG and PGM have 16 bits without a sign
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
    """Values of a range as uint8, those outside at its ends."""
    if options.value_range is None and values.dtype != np.uint16:
        raise ValueRangeError(
            f'{values.dtype} pixels need value_range=(low, high) in LoadRGB: the values that become 0 and 255 (here '
            f'{values.min():g} to {values.max():g})'
        )
    low, high = options.value_range or (0.0, 2.0**16 - 1)
    if options.notice is not None:
        # Of what is cut off: values far outside are as much lost as those that are all alike.
        inside = values[(values >= low) & (values <= high)]
        few = 2 * inside.size < values.size
        limits = (low, low) if few else (float(inside.min()), float(inside.max()))
        options.notice(*limits, (low, high))
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.nan_to_num(scaled).clip(0, 255).round().astype(np.uint8)
