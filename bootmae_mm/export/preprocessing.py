"""Preprocessing of a run, to use its encoder elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from bootmae_mm.checkpoints.reading import load_file
from bootmae_mm.checkpoints.saved_config import config_of, saved_config
from bootmae_mm.checkpoints.sources import INTERPOLATIONS, read_source
from bootmae_mm.config import load_config
from bootmae_mm.data.values import as_ranges
from bootmae_mm.validation import require

# Steps that resize, with their default interpolation.
RESIZES = dict(ResizeEdge='bilinear', Resize='bilinear', RandomResizedCrop='bicubic')


@dataclass(frozen=True)
class Preprocessing:
    """Statistics and resizing of a run; the defaults are those of the paper.

    Attributes:
        mean: Mean of each channel, on the scale 0..1.
        std: Standard deviation of each channel.
        interpolation: Name of the interpolation in Pillow.
        crop_pct: Side of the crop over the shorter side of the resized image, in evaluation.
        squash: Whether images are resized to a fixed height and width, not to a shorter side.
        value_range: Values that became 0 and 255 in files with more than 8 bits, for all channels or for each.
        bands: Channels of the files that were used; None for all.
        dtype: Type of the images before they are normalized.
    """

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = 'bicubic'
    crop_pct: float = 0.875
    squash: bool = False
    value_range: Any = None
    bands: tuple[int, ...] | None = None
    dtype: str = 'uint8'


def read_preprocessing(path: str | Path, config: str | Path | None = None, channels: int = 3) -> Preprocessing:
    """Read the preprocessing of the run that wrote a checkpoint.

    Args:
        path: Path of the checkpoint, or its URL.
        config: Path of the run's config; by default the one in the checkpoint is read.
        channels: Channels of the encoder.

    Raises:
        MissingFileError: If a file is missing.
        ConfigError: If the statistics have another number of channels, or the interpolation has no counterpart.
    """
    checkpoint = load_file(path, mmap=True) if config is None else {}
    if config is None and saved_config(checkpoint) is None:  # of another program
        source = read_source(path)
        mean, std = (tuple(value / 255 for value in values) for values in (source.mean, source.std))
        return Preprocessing(mean, std, source.interpolation or 'bicubic', source.crop_pct or 0.875, source.squash)
    cfg = config_of(checkpoint) if config is None else load_config(config)
    given = {**(cfg.get('data_preprocessor') or {}), **(cfg.get('model', {}).get('data_preprocessor') or {})}
    if str(given.get('type', '')).endswith('BootMAEDataPreprocessor'):
        given = {'mean': [127.5] * 3, 'std': [127.5] * 3, **given}  # its own defaults
    options: dict[str, Any] = {}
    if given.get('mean') is None or given.get('std') is None:
        if given:  # without them, mmpretrain's preprocessor keeps 0..255
            options = dict(mean=(0.0,) * channels, std=(1 / 255,) * channels)
        else:
            print_log('the config has no data_preprocessor: mean and std are written as 0.5', 'current', level=30)
            options = dict(mean=(0.5,) * channels, std=(0.5,) * channels)
    else:
        for name in ('mean', 'std'):
            values = tuple(float(value) / 255 for value in given[name])
            options[name] = values * channels if len(values) == 1 else values
            has_all = len(options[name]) == channels
            require(has_all, f'data_preprocessor.{name} has {len(values)} values, the encoder {channels} channels')
    scale = crop = None
    steps = _steps(cfg)
    for step in steps:
        kind = str(step.get('type', '')).rpartition('.')[2]  # without a scope
        if kind in RESIZES:
            scale, crop = _side(step.get('scale')), _side(step.get('crop_size')) or crop
            options['interpolation'] = step.get('interpolation', RESIZES[kind])
        if kind == 'CenterCrop':
            crop = _side(step.get('crop_size'))
        if kind in ('LoadImage', 'LoadRGB'):
            options['value_range'] = as_ranges(step.get('value_range'))
            options['bands'] = tuple(step['bands']) if step.get('bands') else None
            options['dtype'] = step.get('dtype', 'uint8')
    if scale:
        options['crop_pct'] = min(1.0, (crop or scale) / scale)
    elif steps:  # the run took whole images
        options['crop_pct'] = 1.0
    interpolation, known = options.get('interpolation', 'bicubic'), ', '.join(INTERPOLATIONS)
    require(interpolation in INTERPOLATIONS, f'the interpolation {interpolation!r} of the run must be one of {known}')
    return Preprocessing(**options)


def _side(size: Any) -> int | None:
    """Shorter side of a size given as one number or two."""
    if isinstance(size, (list, tuple)) and size:
        return min(int(value) for value in size)
    return size if isinstance(size, int) else None


def _steps(cfg: Config) -> list[dict]:
    """Steps of the evaluation pipeline, or of the training pipeline if there is no other."""
    for name in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        dataset = (cfg.get(name) or {}).get('dataset') or {}
        while 'dataset' in dataset:  # RepeatDataset and the like
            dataset = dataset['dataset']
        steps = [step for step in dataset.get('pipeline') or [] if isinstance(step, dict)]
        if steps:
            return steps
    return []
