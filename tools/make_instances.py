#!/usr/bin/env python3
"""Write labels for detection from maps for segmentation: each connected region of a class is an object (COCO's format).

Example:
    python tools/make_instances.py data/camvid/images/test data/camvid/annotations/test \\
        --classes 9=car 10=pedestrian 11=bicyclist --to data/camvid/instances_test.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import bootmae_mm  # noqa: F401  before anything of OpenMMLab, for the operators

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks and examples are not installed


def _class(text: str) -> tuple[int, str]:
    label, equals, name = text.partition('=')
    if not (equals and name and label.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text} is not LABEL=NAME, such as 9=car')
    return int(label), name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', help='folder of images')
    parser.add_argument('maps', help='folder of PNG maps with the same names')
    parser.add_argument('--to', required=True, help='file to write')
    parser.add_argument('--classes', nargs='+', type=_class, required=True, metavar='LABEL=NAME')
    parser.add_argument('--min-area', type=int, default=36, help='pixels; smaller regions are not evaluated')
    args = parser.parse_args()

    categories = dict(args.classes)
    if len(categories) < len(args.classes):
        parser.error('--classes has a label twice')
    from examples.instances import write_instances

    try:
        summary = write_instances(args.images, args.maps, args.to, categories, args.min_area)
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from error
    print(', '.join(f'{number} {name}' for name, number in summary.items()), f'-> {args.to}')


if __name__ == '__main__':
    main()
