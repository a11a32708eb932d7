"""Draw what an encoder sees: the features of the patches as colors, and what the class token attends to.

Patches of the same color have similar features: the colors are the first three principal components over all images of
the picture. Reads what `bootmae embed` reads: runs, and encoders of other programs.

Examples:
    bootmae show run images/ --out features.png
    bootmae show hf-hub:timm/vit_small_patch16_224.dino photo.jpg other.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import channels_argument, errors_in_one_line, trust_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('checkpoint', help='checkpoint, or the folder of a run')
    parser.add_argument('images', nargs='+', help='image files, or folders of them')
    parser.add_argument('--out', default='features.png', help='picture to write (default: features.png)')
    parser.add_argument('--max-images', type=int, default=8, help='draw only the first MAX_IMAGES images (default: 8)')
    channels_argument(parser)
    parser.add_argument('--prefix', help="prefix of the encoder's keys: backbone. (default) or teacher.")
    trust_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    with errors_in_one_line():
        import torch
        from PIL import Image

        from bootmae_mm.data.paths import images_of
        from bootmae_mm.features import load_encoder
        from bootmae_mm.validation import Count, parse
        from bootmae_mm.visualization import draw_panels, feature_panels

        encoder = load_encoder(args.checkpoint, prefix=args.prefix)
        paths = images_of(args.images)[: parse(Count, args.max_images, 'max_images')]
        images = torch.stack([encoder.preprocess(path) for path in paths])  # (B, C, H, W)
        panels = feature_panels(encoder.backbone, images, encoder.mean, encoder.std)
        picture = draw_panels(panels, [Path(path).name[:24] for path in paths], channels=args.channels)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(args.out)
    print(f'{len(paths)} images -> {args.out}')
