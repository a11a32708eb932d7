"""Measure the channels, types and values of images, and write a config that reads them.

Examples:
    bootmae stats images/
    bootmae stats scans/ --out scans.py; bootmae train scans.py --out run
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import errors_in_one_line

if TYPE_CHECKING:
    from bootmae_mm.data.statistics import Statistics

BASE = 'bootmae_mm::pretrain/bootmae_auto.py'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('images', nargs='+', help='image files, or folders of them')
    parser.add_argument('--max-images', type=int, default=1000, help='images to read, evenly spaced (default: 1000)')
    parser.add_argument('--out', metavar='FILE', help='child config to write, with the values that were found')
    parser.add_argument('--base', default=BASE, help=f'its base (default: {BASE})')


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    with errors_in_one_line():
        from bootmae_mm.data.paths import images_of
        from bootmae_mm.data.statistics import measure
        from bootmae_mm.progress import bar
        from bootmae_mm.validation import require

        require(args.out is None or args.out.endswith('.py'), f'--out must be a config (.py), but is {args.out}')
        require(not args.out or Path(args.images[0]).is_dir(), '--out needs the folder that the images are read from')
        paths = images_of(args.images)
        with bar('Measuring', min(len(paths), args.max_images)) as advance:
            found = measure(paths, args.max_images, advance)
        print(table(found, len(paths)))
        if args.out:
            text = f'# Measured by `bootmae stats` on {found.images:,} of {len(paths):,} images.\n'
            Path(args.out).write_text(text + found.config(str(Path(args.images[0]).resolve()), args.base))
            print(f'-> {args.out}; train with: bootmae train {args.out} --out run')


def table(found: Statistics, total: int) -> str:
    """The statistics as text."""
    lines = [f'{found.images:,} of {total:,} images read, {len(found.unreadable)} unreadable {found.unreadable[:1]}']
    for (channels, dtype), count in sorted(found.kinds.items(), key=lambda item: -item[1]):
        lines.append(f'  {count:,} with {channels} channel(s) of {dtype}')
    lines.append(f'{"channel":>8} {"smallest":>10} {"largest":>10} {"value_range":>24} {"mean":>8} {"std":>8}')
    for channel in range(found.channels):
        limits = '' if found.value_range is None else '({:g}, {:g})'.format(*found.value_range[channel])
        lines.append(
            f'{channel:8} {found.smallest[channel]:10g} {found.largest[channel]:10g} {limits:>24} '
            f'{found.mean[channel]:8.2f} {found.std[channel]:8.2f}'
        )
    lines.append('value_range: 99.8 % of the values lie inside. mean and std: on the scale 0..255, after value_range.')
    return '\n'.join(lines)
