"""Channels, types and values of the images of a data set, to choose the keys that read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bootmae_mm.validation import Count, require, validated

from .decoding import Decoding, raw_values
from .values import Limits, LoadingError, Values, scaled

PIXELS = 2000  # pixels of an image that the percentiles are taken of


@dataclass(frozen=True)
class Statistics:
    """Statistics of images.

    Attributes:
        images: Number of images that were read.
        unreadable: Paths of images that could not be read.
        channels: Number of channels of most images; 1 counts as 3 if there are images with 3.
        kinds: Number of images for each (channels, type).
        dtype: Type of most images.
        smallest: Smallest value of each channel, (C,).
        largest: Largest value of each channel, (C,).
        value_range: Range that holds 99.8 % of the values of a channel, for each channel; None for 8 bits.
        mean: Mean of each channel on the scale 0..255.
        std: Standard deviation of each channel on the scale 0..255.
    """

    images: int
    unreadable: list[str]
    channels: int
    kinds: dict[tuple[int, str], int]
    dtype: str
    smallest: list[float]
    largest: list[float]
    value_range: list[Limits] | None
    mean: list[float]
    std: list[float]

    def config(self, data_root: str, base: str) -> str:
        """A child config with these values."""
        lines = [f'_base_ = {base!r}', '', f'data_root = {data_root!r}']
        if self.channels != 3:
            lines.append(f'channels = {self.channels}')
        if self.value_range is not None:
            lines.append(f'value_range = {[tuple(map(_plain, limits)) for limits in self.value_range]!r}')
        if self.channels != 3 or self.value_range is not None:  # of 8-bit RGB, the paper's and those of `init` are kept
            lines += [f'mean = {self.mean!r}', f'std = {self.std!r}']
        return '\n'.join(lines) + '\n'


def _plain(number: float) -> int | float:
    """A whole number without a point."""
    return int(number) if number == int(number) else number


@validated
def measure(
    paths: Sequence[str], max_images: Count | None = 1000, done: Callable[[int], None] = lambda count: None
) -> Statistics:
    """Measure images.

    Args:
        paths: Paths of image files.
        max_images: Number of images to read, evenly spaced; None for all.
        done: Callback with the number of images read since the last call.

    Raises:
        ConfigError: If no image can be read, or a package is missing.
    """
    step = 1 if max_images is None else max(1, len(paths) / max_images)
    chosen = [paths[int(index * step)] for index in range(int(len(paths) / step))]
    samples: dict[tuple[int, str], list[_Sample]] = {}
    unreadable: list[str] = []
    reason = ''
    for path in chosen:
        try:
            image = raw_values(Path(path).read_bytes(), Decoding(max_pixels=100_000_000))
        except LoadingError:
            raise  # a package is missing
        except Exception as error:  # noqa: BLE001  decoders raise anything on a broken file
            unreadable.append(path)
            reason = reason or f'{path}: {error}'
        else:
            key = (_channels(image), image.values.dtype.name)
            samples.setdefault(key, []).append(_Sample.of(image, key[0]))
        done(1)
    require(samples, f'none of the {len(chosen)} images can be read; {reason}')
    kinds = Counter({key: len(found) for key, found in samples.items()})
    channels, dtype = max(kinds, key=lambda key: (kinds[key], key[0]))
    if channels == 1 and any(key[0] == 3 for key in kinds):  # gray images among colored ones
        channels, dtype = max((key for key in kinds if key[0] == 3), key=lambda key: kinds[key])
    return _summary(samples[channels, dtype], unreadable, dict(kinds), channels, dtype)


@dataclass(frozen=True)
class _Sample:
    """What is kept of an image: the extremes, and some of its pixels (N, C)."""

    smallest: np.ndarray
    largest: np.ndarray
    pixels: np.ndarray
    inverted: bool
    bits: int | None

    @classmethod
    def of(cls, image: Values, channels: int) -> _Sample:
        flat = image.values[:, :, :channels].reshape(-1, channels)
        if flat.dtype.kind == 'f':
            flat = flat[np.isfinite(flat).all(axis=1)]
            require(len(flat), 'no finite value')
        some = flat[:: max(1, len(flat) // PIXELS)][: 2 * PIXELS]
        return cls(flat.min(axis=0), flat.max(axis=0), some.copy(), image.inverted, image.bits)


def _channels(image: Values) -> int:
    """Channels without transparency."""
    count = image.values.shape[2]
    return count - 1 if image.has_alpha else count


def _summary(
    samples: list[_Sample], unreadable: list[str], kinds: dict[tuple[int, str], int], channels: int, dtype: str
) -> Statistics:
    pixels = np.concatenate([sample.pixels for sample in samples])  # (N, C)
    ranges = None
    if pixels.dtype not in (np.uint8, bool):
        ranges = [_range(pixels[:, channel]) for channel in range(channels)]
    mapped = np.concatenate(
        [scaled(sample.pixels, ranges, 'float32', sample.inverted, sample.bits) for sample in samples]
    ).astype(np.float64)
    mean, std = mapped.mean(axis=0), mapped.std(axis=0)
    return Statistics(
        images=len(samples),
        unreadable=unreadable,
        channels=channels,
        kinds=kinds,
        dtype=dtype,
        smallest=np.min([sample.smallest for sample in samples], axis=0).astype(float).tolist(),
        largest=np.max([sample.largest for sample in samples], axis=0).astype(float).tolist(),
        value_range=ranges,
        mean=[round(float(value), 2) for value in mean],
        std=[round(max(float(value), 1.0), 2) for value in std],  # of a constant channel
    )


def _range(values: np.ndarray) -> Limits:
    """Range of 99.8 % of the values; whole numbers for whole numbers."""
    low, high = (float(value) for value in np.percentile(values.astype(np.float64), (0.1, 99.9)))
    if values.dtype.kind in 'iu':
        low, high = float(np.floor(low)), float(np.ceil(high))
    else:
        low, high = float(f'{low:.4g}'), float(f'{high:.4g}')
    return (low, high) if high > low else (low, low + 1.0)  # of a constant channel
