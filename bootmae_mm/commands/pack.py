"""Pack a folder of images into archives that are quick to read: shortened once, in ZIP files without compression.

They hold pixels (.npy) or JPEG files that any program can read, and are used as any archives of images. Images are
packed as 8-bit RGB: other channels and a value range are for folders of images only. An interrupted call resumes.

Examples:
    bootmae pack data/imagenet/train data/imagenet_packed/train --edge 256 --workers 16
    bootmae pack data/imagenet/train data/imagenet_jpeg/train --format jpeg
    bootmae pack --check data/imagenet_packed/train
    bootmae train bootmae_mm::pretrain/bootmae_vitb_folder.py --data data/imagenet_packed/train
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import errors_in_one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('images', nargs='?', help='folder of images, at any depth')
    parser.add_argument('out', nargs='?', help='folder for the pack')
    parser.add_argument('--check', metavar='PACK', help='compare all checksums of ZIP archives, and nothing else')
    parser.add_argument('--edge', type=int, default=256, help='longest shorter side in pixels (default: 256)')
    parser.add_argument('--format', choices=['raw', 'jpeg'], default='raw', help='pixels, or files (default: raw)')
    parser.add_argument('--quality', type=int, default=95, help='quality of JPEG (default: 95)')
    parser.add_argument('--images-per-archive', type=int, default=2000, help='default: 2000')
    parser.add_argument('--workers', type=int, default=1, help='processes (default: 1)')
    parser.add_argument(
        '--max-unreadable', type=float, default=0.01, help='largest share of unreadable images (default: 0.01)'
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if bool(args.check) == bool(args.images) or bool(args.images) != bool(args.out):
        args.usage_error('give a folder of images and one for the pack, or --check PACK')
    from mmengine.utils import ProgressBar, track_iter_progress

    from bootmae_mm.data import ImageFolder
    from bootmae_mm.data.archives import Archives, find_archives
    from bootmae_mm.data.pack_writer import PackOptions, pack
    from bootmae_mm.validation import ConfigError, parse

    with errors_in_one_line():
        if args.check:
            images = Archives(find_archives(args.check))
            damaged = [images.path(i) for i in track_iter_progress(range(len(images))) if not images.is_intact(i)]
            print()
            if damaged:
                raise ConfigError(f'{len(damaged)} of {len(images)} images are damaged: {", ".join(damaged[:5])}')
            print(f'{len(images)} images are intact')
            return
        keys = ('edge', 'format', 'quality', 'images_per_archive')
        options = parse(PackOptions, {key: getattr(args, key) for key in keys}, '')
        folder = ImageFolder(data_root=args.images)
        root = Path(args.images)
        names = [str(Path(folder.get_data_info(i)['img_path']).relative_to(root)) for i in range(len(folder))]
        bar = ProgressBar(len(names))
        result = pack(root, names, args.out, options, args.workers, args.max_unreadable, bar.update)
        print()
    print(
        f'{result["images"]} images, {result["bytes"] / 1e6:.1f} MB in {args.out}; {result["unreadable"]} could not be '
        'read'
    )
