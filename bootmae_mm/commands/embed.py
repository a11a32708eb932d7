"""Write the features of images to a file: one row for each image that can be read.

An interrupted call resumes when it is given again. Unreadable images are logged and left out.

Examples:
    bootmae embed run images/ --to features.npy
    bootmae embed work_dirs/bootmae_vitb/epoch_800.pth images/ more/ --to features.csv --tokens cls
    bootmae embed run images/ --to features.parquet --workers 8 --devices 4
"""

from __future__ import annotations

import argparse
import os
import sys

from .arguments import errors_in_one_line, trust_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('checkpoint', help='checkpoint, or the folder of a run')
    parser.add_argument('images', nargs='+', help='image files, or folders of them')
    parser.add_argument('--to', required=True, metavar='FILE', help='file to write: .npy, .csv or .parquet')
    parser.add_argument('--tokens', choices=['mean', 'cls', 'patches'], default='mean', help='default: mean')
    parser.add_argument('--plot', metavar='FILE', help='draw the images as points by t-SNE: .png, .svg or .pdf')
    parser.add_argument('--batch-size', type=int, default=64, help='images at a time (default: 64)')
    parser.add_argument('--workers', type=int, default=0, help='processes that read images (default: 0)')
    parser.add_argument('--devices', type=int, help='number of processes that compute (default: one for each GPU)')
    parser.add_argument('--prefix', help="prefix of the encoder's keys: backbone. (default) or teacher.")
    parser.add_argument(
        '--max-unreadable', type=float, default=0.01, help='largest share of unreadable images (default: 0.01)'
    )
    trust_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    try:
        with errors_in_one_line():
            from bootmae_mm.engine.training import launch_command, launch_environment, number_of_processes

            count = 1 if 'RANK' in os.environ else number_of_processes(args.devices)
            if count > 1:
                command = launch_command(count, args.argv, 'embed')
                os.execve(command[0], command, launch_environment())
            from bootmae_mm.features import embed

            result = embed(
                args.checkpoint,
                args.images,
                args.to,
                args.tokens,
                args.batch_size,
                args.workers,
                args.max_unreadable,
                args.prefix,
            )
    except ImportError as error:
        raise SystemExit(f'error: {error.name} is needed: pip install {error.name}') from error
    if int(os.environ.get('RANK', 0)) == 0:
        if args.plot:
            from bootmae_mm.visualization import draw_map

            with errors_in_one_line():
                draw_map(result.features, result.paths, args.plot)
        print(f'{len(result.paths)} images, features {result.features.shape} -> {args.to}', file=sys.stdout)
