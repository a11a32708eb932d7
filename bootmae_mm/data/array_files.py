"""Files that hold arrays rather than photographs: NumPy, TIFF of any depth and number of bands, DICOM."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from bootmae_mm.validation import MAX_CHANNELS, require

from .values import LoadingError, Values

NUMPY = b'\x93NUMPY'
PIXELS = re.compile(rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d+), (\d+), (\d+)\), \} *\n")
TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')  # the last two: BigTIFF
CheckSize = Callable[[int, int], None]  # raises for an image (height, width) that is too large


def read_array(data: bytes, channels: int | None, check_size: CheckSize) -> Values | None:
    """Read a file that Pillow cannot read, or only with a loss.

    Args:
        data: Content of the file.
        channels: Number of channels wanted; None for those of the file.
        check_size: Called with height and width before the pixels are read.

    Returns:
        Its values; None if it is a file for other decoders.

    Raises:
        LoadingError: If a package is missing.
        Exception: Errors of the package for a broken file.
    """
    if data.startswith(NUMPY):
        return _numpy(data, check_size)
    if data[128:132] == b'DICM':
        return _dicom(data, check_size)
    if data.startswith(TIFF) and (channels not in (1, 3, 4) or not _is_plain(data)):
        return _tiff(data, channels, check_size)
    return None


def _package(name: str, kind: str) -> Any:  # noqa: ANN401  a module
    try:
        return importlib.import_module(name)
    except ImportError as error:
        advice = "pip install 'bootmae_mm[images]'"
        raise LoadingError(f'{kind} needs {name.partition(".")[0]}: {advice} ({error})') from error


def mapped_pixels(data: memoryview) -> np.ndarray | None:
    """Pixels (H, W, C) uint8 of a NumPy file as ``numpy.save`` writes it, without a copy; None for other files."""
    if data[:6] != NUMPY:
        return None
    end = 10 + int.from_bytes(data[8:10], 'little')  # of the header
    found = PIXELS.match(data[10:end])  # numpy's own parser takes ten times as long
    if data[6] != 1 or found is None:
        return None
    shape = tuple(map(int, found.groups()))
    return np.frombuffer(data[end:], np.uint8).reshape(shape)


def _numpy(data: bytes, check_size: CheckSize) -> Values:
    """(H, W), (H, W, C), or (C, H, W), in which the first axis is the smallest."""
    values = np.load(io.BytesIO(data), allow_pickle=False, max_header_size=4096)
    require(values.ndim in (2, 3) and values.size > 0, f'an array of shape {values.shape} is not an image')
    if values.ndim == 2:
        values = values[:, :, None]
    elif values.shape[0] < min(values.shape[1:]):
        values = values.transpose(1, 2, 0)
    return _checked(values, check_size)


def _checked(values: np.ndarray, check_size: CheckSize) -> Values:
    check_size(*values.shape[:2])
    _check_bands(values.shape[2])
    return Values(values)


def _check_bands(count: int) -> None:
    require(count <= MAX_CHANNELS, f'the file has {count} channels, more than {MAX_CHANNELS}')


def _is_plain(data: bytes) -> bool:
    """Whether Pillow reads all of a TIFF file: at most four channels of 8 bits, or one of any depth."""
    try:
        with Image.open(io.BytesIO(data), formats=('TIFF',)) as image:
            bits = image.tag_v2.get(258, (1,))
    except OSError:  # a combination that Pillow does not know, or a broken file
        return False
    bits = bits if isinstance(bits, tuple) else (bits,)
    return len(bits) == 1 or (len(bits) <= 4 and max(bits) <= 8)


def _tiff(data: bytes, channels: int | None, check_size: CheckSize) -> Values:
    tifffile = _package('tifffile', 'this TIFF file')
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        check_size(page.imagelength, page.imagewidth)
        _check_bands(page.samplesperpixel)
        try:
            if page.samplesperpixel == 1 and len(file.pages) > 1 and channels in (None, len(file.pages)):
                _check_bands(len(file.pages))
                values = np.stack([part.asarray() for part in file.pages], axis=-1)  # one page for each channel
            else:
                values = page.asarray()
                if page.samplesperpixel == 1:
                    values = values[..., None]
                elif page.axes.startswith('S'):  # one plane for each channel
                    values = np.moveaxis(values, 0, -1)
        except (ValueError, KeyError) as error:
            if 'imagecodecs' in str(error):
                _package('imagecodecs', f'the compression {page.compression.name} of this TIFF file')
            raise
        has_alpha = any(sample.name in ('ASSOCALPHA', 'UNASSALPHA') for sample in page.extrasamples)
        count = 3 + has_alpha
        return Values(values, page.photometric.name == 'RGB' and values.shape[-1] == count, has_alpha=has_alpha)


def _dicom(data: bytes, check_size: CheckSize) -> Values:
    """The first frame, with slope and intercept applied (Hounsfield units in CT)."""
    pydicom = _package('pydicom', 'a DICOM file')
    pixels = _package('pydicom.pixels', 'a DICOM file')
    header = pydicom.dcmread(io.BytesIO(data))
    require('PixelData' in header, 'a DICOM file without pixels')
    check_size(header.Rows, header.Columns)
    try:
        values = pixels.pixel_array(header, index=0)  # colors as RGB
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        if re.search(r'unable to (decompress|decode)|missing dependenc|plugin', str(error), flags=re.IGNORECASE):
            raise LoadingError(f"the compression of a DICOM file needs a package of pydicom's: {error}") from error
        raise
    if values.ndim == 3:
        return Values(values, is_color=values.shape[2] == 3)
    is_raw = values.dtype.kind == 'u'
    rescaled = pixels.apply_rescale(values, header)
    if np.array_equal(rescaled, values):
        rescaled = values
    elif is_raw or values.dtype.kind == 'i':
        whole = np.rint(rescaled)
        rescaled = whole.astype(np.int32) if np.array_equal(whole, rescaled) else rescaled
    inverted = header.PhotometricInterpretation == 'MONOCHROME1'
    bits = int(header.BitsStored) if rescaled is values and is_raw else None
    return Values(rescaled[:, :, None], inverted=inverted, bits=bits)
