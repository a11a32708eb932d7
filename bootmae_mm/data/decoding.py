"""From the bytes of an image file to pixels: colours, orientation, limits."""

from __future__ import annotations

import io

import cv2
import mmcv
import numpy as np
from PIL import Image, ImageOps

# Where Pillow itself refuses an image (twice its MAX_IMAGE_PIXELS).
PILLOW_LIMIT = 178_956_970
# What Pillow is to try. Not all it knows: EPS, for one, would start another program.
PILLOW_FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP', 'TIFF', 'PPM', 'GIF')

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


def decode(
    data: bytes, backend: str = 'auto', max_pixels: int = PILLOW_LIMIT, min_edge: int | None = None
) -> np.ndarray:
    """Pixels of an image file, uint8 (H, W, 3) in RGB; arguments as for :class:`LoadRGB`.

    Raises:
        Exception: Whatever the decoder raises on a file that is broken; ValueError on one with too many pixels.
    """
    # OpenCV before 5 fills what is missing of a truncated file with grey; Pillow refuses it.
    if backend == 'auto' and data.startswith(b'\xff\xd8') and b'\xff\xd9' in data[-1024:]:
        size = jpeg_size(data)
        if size is not None:
            _check_size(*size, max_pixels)
            img = _decode_jpeg(data, 1 if min_edge is None else _reduction(min(size), min_edge))
            if img is not None:
                return img
    return _decode_any(data, backend, max_pixels)


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


def _decode_any(data: bytes, backend: str, max_pixels: int) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:  # the header
        _check_size(image.height, image.width, max_pixels)
        if backend in ('auto', 'pillow'):
            return _to_rgb(ImageOps.exif_transpose(image))
    img = mmcv.imfrombytes(data, flag='color', channel_order='rgb', backend=backend)
    if img is None:
        raise ValueError('not an image')
    return img


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels in RGB; of several frames the first. Transparency is dropped, what lies below it shows."""
    if image.mode.startswith('I'):  # 16 bits a pixel, which Pillow would cut off at 255
        grey = (np.asarray(image).clip(0, 2**16 - 1) / 257).round().astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == 'F':
        raise ValueError('pixels in floating point have no range that could be mapped to 0..255')
    return np.array(image.convert('RGB'))
