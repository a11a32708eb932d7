"""Classify labeled images by the frozen features of an encoder: what are they worth?

Neighbors (kNN) and linear classifiers, beside the same encoder with random weights, and the pixels themselves; with
--finetune also the whole encoder, fine-tuned on a few labels.

Examples:
    bootmae probe run labeled/
    bootmae probe hf-hub:timm/vit_small_patch16_224.dino labeled/ --labels 1 5 10 --out probe.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .arguments import errors_in_one_line, trust_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('checkpoint', help='checkpoint, or the folder of a run')
    parser.add_argument('data', help='folder with a folder for each class, or with train and test of such folders')
    parser.add_argument('--k', type=int, default=20, help='number of neighbors (default: 20)')
    parser.add_argument('--labels', type=int, nargs='*', default=[1, 10], help='labels of a class (default: 1 10)')
    parser.add_argument('--max-per-class', type=int, default=1000, help='images of a class (default: 1000)')
    parser.add_argument('--no-baselines', action='store_true', help='leave out random weights and pixels')
    parser.add_argument(
        '--finetune', type=int, nargs='+', default=[], metavar='LABELS', help='labels of a class to fine-tune with'
    )
    parser.add_argument('--steps', type=int, default=400, help='steps of fine-tuning (default: 400)')
    parser.add_argument('--flip', action='store_true', help='mirror half of the images in fine-tuning')
    parser.add_argument('--draws', type=int, default=1, help='draws of labels for --finetune (default: 1)')
    parser.add_argument('--batch-size', type=int, default=64, help='images at a time (default: 64)')
    parser.add_argument('--workers', type=int, default=0, help='processes that read images (default: 0)')
    parser.add_argument('--prefix', help="prefix of the encoder's keys: backbone. (default) or teacher.")
    parser.add_argument('--out', help='JSON file to write')
    trust_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    with errors_in_one_line():
        from bootmae_mm.features import probe

        rows = probe(
            args.checkpoint,
            args.data,
            k=args.k,
            labels_per_class=args.labels,
            max_per_class=args.max_per_class,
            baselines=not args.no_baselines,
            finetune=args.finetune,
            recipe=dict(steps=args.steps, flip=args.flip),
            draws=args.draws,
            batch_size=args.batch_size,
            num_workers=args.workers,
            prefix=args.prefix,
        )
    columns = list(next(iter(rows.values())))
    print('  '.join([f'{"accuracy in %":16}', *(f'{column:>9}' for column in columns)]))
    for name, values in rows.items():
        cells = (f'{values[column]:.1f}' if column in values else '' for column in columns)
        print('  '.join([f'{name:16}', *(f'{cell:>{max(9, len(column))}}' for cell, column in zip(cells, columns))]))
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=2) + '\n')
