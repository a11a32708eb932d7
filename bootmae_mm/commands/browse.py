"""Draw training samples before a run: what the pipeline makes of the images, and what the masks leave of them.

These are the first samples of a run on one process with this seed; after its first batch, masks have another roll.

Examples:
    bootmae browse --data images/
    bootmae browse bootmae_mm::pretrain/bootmae_vitb.py --data data/imagenet --out browse
    bootmae browse mine.py --max-images 64 --seed 1
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import cfg_options_argument, channels_argument

if TYPE_CHECKING:
    from mmengine.config import Config

ROWS = 8  # samples of a picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('config', nargs='?', help='path or bootmae_mm::NAME of a config; default: that of --data')
    parser.add_argument('--data', help='folder, list, archives or hf:// of images, as `bootmae train` takes them')
    parser.add_argument('--out', default='browse', metavar='FOLDER', help='folder for the pictures (default: browse)')
    parser.add_argument('--max-images', type=int, default=16, help='number of samples (default: 16)')
    parser.add_argument('--seed', type=int, help="seed of order, crops and masks (default: the config's, or 0)")
    channels_argument(parser)
    cfg_options_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from PIL import Image

    from bootmae_mm.engine.launch import exit_with, read_config
    from bootmae_mm.engine.training import AUTO_CONFIG, run_options
    from bootmae_mm.validation import require
    from bootmae_mm.visualization import draw_panels, sample_panels

    try:
        require(args.config or args.data, 'give images (--data) or a config')
        cfg = read_config(args.config or AUTO_CONFIG, run_options(args.data) | args.cfg_options)
        panels = sample_panels(*first_batch(cfg, args.max_images, args.seed))
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        count = len(panels['sample'])
        for start in range(0, count, ROWS):
            page = {title: images[start : start + ROWS] for title, images in panels.items()}
            picture = draw_panels(page, channels=args.channels)
            Image.fromarray(picture).save(out / f'samples_{start // ROWS + 1:03}.png')
    except Exception as error:  # noqa: BLE001  raised again if it is a defect
        exit_with(error)
    if cfg.model.get('masking'):
        print('model.masking changes the masks during training: these are those of the loader')
    print(f'{count} samples -> {out}')


def first_batch(cfg: Config, count: int, seed: int | None = None) -> tuple[dict, tuple[int, int]]:
    """The first samples of a run, as the model gets them but for the normalization.

    Args:
        cfg: Config from ``read_config``.
        count: Number of samples, before :class:`Repeat`.
        seed: Seed of the run; by default ``randomness.seed`` of the config, or 0.

    Returns:
        The batch, with images (B, C, H, W) in 0..255, and the grid of its masks.

    Raises:
        ConfigError: If the training data has no masks.
    """
    from itertools import islice

    from mmengine.registry import init_default_scope

    from bootmae_mm.data import collate
    from bootmae_mm.models import BootMAEDataPreprocessor
    from bootmae_mm.registry import DATA_SAMPLERS, DATASETS
    from bootmae_mm.validation import Count, parse, require

    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    seed = (cfg.get('randomness') or {}).get('seed') if seed is None else seed
    sampler = DATA_SAMPLERS.build(cfg.train_dataloader.sampler, default_args=dict(dataset=dataset, seed=seed or 0))
    samples = [dataset[index] for index in islice(sampler, parse(Count, count, 'max_images'))]
    first = samples[0][0] if isinstance(samples[0], list) else samples[0]
    has_masks = isinstance(first, dict) and 'masking' in first
    require(has_masks, f'{cfg.filename} is not for pretraining: train_dataloader.dataset has no masking')
    batch = collate(samples)
    channels = batch['inputs'].shape[1]
    flip_only = BootMAEDataPreprocessor(mean=(0.0,) * channels, std=(1.0,) * channels)
    return flip_only(batch), first['masking'].grid
