#!/usr/bin/env python3
"""Write scenes or forms of real digits with labels for segmentation, detection and classification.

The same arguments give the same files. Writes images/ and annotations/ as in ADE20K (0 is no label, 1 background,
2 + digit), instances_training.json and instances_validation.json as in COCO, and digits/ with a folder of crops per
class.

Example:
    python tools/make_digit_scenes.py data/digit_scenes
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import bootmae_mm  # noqa: F401  before anything of OpenMMLab, for the operators

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks and examples are not installed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', help='folder to write to; must be empty or new')
    parser.add_argument('--training', type=int, default=1000, metavar='N', help='number of training scenes')
    parser.add_argument('--validation', type=int, default=200, metavar='N', help='number of validation scenes')
    parser.add_argument('--size', type=int, default=64, help='side of a scene in pixels')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--kind', choices=('scenes', 'forms'), default='scenes', help='forms: digits in cells')
    args = parser.parse_args()

    from mmengine.utils import ProgressBar

    from examples.digit_scenes import write_scenes

    counts = dict(training=args.training, validation=args.validation)
    bar = ProgressBar(sum(counts.values()))
    try:
        summary = write_scenes(args.root, counts, args.size, args.seed, bar.update, args.kind)
    except (ValueError, FileExistsError, ImportError) as error:
        raise SystemExit(f'error: {error}') from error
    print()
    for split, numbers in summary.items():
        print(f'{split}: ' + ', '.join(f'{number} {name}' for name, number in numbers.items()))
    print(f'-> {args.root}')


if __name__ == '__main__':
    main()
