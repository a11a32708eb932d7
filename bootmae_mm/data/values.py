"""From the values of an image file to 0..255: channels, bands, value ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import cv2
import numpy as np
from pydantic import BeforeValidator, Field

from bootmae_mm.validation import MAX_CHANNELS, ConfigError, Natural, require

Limits = tuple[float, float]  # values that become 0 and 255
Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]


class LoadingError(ConfigError):
    """An image that needs another option or a package; the file is not broken."""


def as_ranges(value: Any) -> Any:
    """A value range as written in a config: (low, high), a number of bits, or one of them for each channel."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 32:
        return (0.0, 2.0**value - 1)
    is_list = isinstance(value, (list, tuple)) and bool(value)
    if is_list and (len(value) != 2 or any(isinstance(part, (list, tuple)) for part in value)):
        return tuple(as_ranges(part) for part in value)
    return tuple(value) if isinstance(value, list) else value


def _checked_range(value: Any) -> Any:
    value = as_ranges(value)
    many = isinstance(value, tuple) and bool(value) and all(isinstance(part, tuple) for part in value)
    for part in value if many else [value]:
        numbers = isinstance(part, tuple) and len(part) == 2 and not any(isinstance(end, bool) for end in part)
        if not numbers or not all(isinstance(end, (int, float)) and np.isfinite(end) for end in part):
            raise ValueError('must be (low, high), a number of bits from 1 to 32, or a list of one for each channel')
        if part[0] >= part[1]:
            raise ValueError(f'must be (low, high) with low < high, but is {part}')
    return value


ValueRange = Annotated[Any, BeforeValidator(_checked_range)]  # Limits, or one for each channel
DType = Literal['uint8', 'float32']
Bands = Annotated[Sequence[Natural], Field(min_length=1, max_length=MAX_CHANNELS)]


class Values(NamedTuple):
    """Values of an image file.

    Attributes:
        values: Values of any type, (H, W, C).
        is_color: Whether the channels are red, green, blue, and perhaps transparency.
        inverted: Whether the smallest value is white.
        bits: Number of bits that the file says are used; None if all of the type are.
        has_alpha: Whether the last channel is transparency.
    """

    values: np.ndarray
    is_color: bool = False
    inverted: bool = False
    bits: int | None = None
    has_alpha: bool = False


def with_channels(image: Values, channels: int, bands: Sequence[int] | None = None) -> np.ndarray:
    """Choose the channels of an image: (H, W, C) -> (H, W, channels).

    Gray becomes three equal channels, and color becomes gray, as Pillow does it; transparency is dropped.

    Raises:
        ConfigError: If the file has other channels.
    """
    values = image.values
    found = values.shape[2]
    if bands is not None:
        require(max(bands) < found, f'the image has {found} channels, so there is no band {max(bands)} (from 0)')
        return values[:, :, list(bands)]
    if found == channels:
        return values
    if found <= 2 and channels in (1, 3):  # gray, or gray with transparency
        return np.repeat(values[:, :, :1], channels, axis=2)
    if image.is_color and channels == 3:
        return values[:, :, :3]
    if image.is_color and channels == 1:
        gray = cv2.cvtColor(np.ascontiguousarray(values[:, :, :3]).astype(np.float32), cv2.COLOR_RGB2GRAY)[:, :, None]
        return gray if values.dtype.kind == 'f' else gray.round().astype(values.dtype)
    advice = f'; set channels={found}, or choose bands' if channels in (1, 3) else ''
    raise ConfigError(f'the image has {found} channels, not {channels}{advice}')


def scaled(
    values: np.ndarray,
    value_range: Limits | Sequence[Limits] | None = None,
    dtype: str = 'uint8',
    inverted: bool = False,
    bits: int | None = None,
    notice: Callable[[float, float, Limits], None] | None = None,
) -> np.ndarray:
    """Map values to 0..255; 8-bit values are kept.

    Args:
        values: Values of any type, (..., C).
        value_range: Values that become 0 and 255, for all channels or each; values outside are clipped.
        dtype: ``'uint8'``, rounded; or ``'float32'``, which keeps what lies between two of 256 levels.
        inverted: Whether low values are white.
        bits: Number of bits used, for unsigned values without a range.
        notice: Callback with the smallest and the largest value within a range, and the range. If most values lie
            outside, the smallest and the largest are the same.

    Raises:
        LoadingError: If the values need a range, or there are ranges for another number of channels.
    """
    if values.dtype == bool:
        values = values * np.uint8(255)
    if values.dtype == np.uint8:
        mapped: np.ndarray = values
    else:
        low, high = _limits(values, value_range, bits)
        if notice is not None:
            _notice(values, low, high, notice)
        mapped = (values.astype(np.float64) - low) * (255 / (high - low))
        mapped = np.nan_to_num(mapped).clip(0, 255)
    mapped = 255 - mapped if inverted else mapped
    if dtype == 'float32':
        return mapped.astype(np.float32)
    return mapped if mapped.dtype == np.uint8 else mapped.round().astype(np.uint8)


def _limits(
    values: np.ndarray, value_range: Limits | Sequence[Limits] | None, bits: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Values of each channel that become 0 and 255, (C,) or (1,) each."""
    if value_range is None:
        if values.dtype != np.uint16:
            raise LoadingError(
                f'{values.dtype} pixels need value_range=(low, high) in LoadImage, the values that become 0 and 255; '
                f'this file has {values.min():g} to {values.max():g}; `bootmae stats` measures all of them'
            )
        value_range = (0.0, 2.0 ** (bits or 16) - 1)
    limits = np.array(value_range, dtype=np.float64).reshape(-1, 2)  # (C or 1, 2)
    if len(limits) not in (1, values.shape[-1]):
        raise LoadingError(f'value_range has {len(limits)} ranges, but the image {values.shape[-1]} channels')
    return limits[:, 0], limits[:, 1]


def _notice(
    values: np.ndarray, low: np.ndarray, high: np.ndarray, notice: Callable[[float, float, Limits], None]
) -> None:
    parts = [values] if len(low) == 1 else np.moveaxis(values, -1, 0)
    for part, lower, upper in zip(parts, low.tolist(), high.tolist(), strict=True):
        inside = part[(part >= lower) & (part <= upper)]  # values that are not clipped
        few = 2 * inside.size < part.size
        limits = (lower, lower) if few else (float(inside.min()), float(inside.max()))
        notice(limits[0], limits[1], (lower, upper))
