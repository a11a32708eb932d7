#!/usr/bin/env python3
"""Draw what a pretrained model makes of masked images: original, masked, reconstruction, prediction.

The model is built from the config inside the checkpoint (read as data, not run) or from --config.

Example:
    python tools/reconstruct.py work_dirs/bootmae_vitb/epoch_800.pth photo.jpg other.png --out reconstruction.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import bootmae_mm  # noqa: F401  registers what the imports below need


def main() -> None:
    from bootmae_mm.arguments import parse_args

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='checkpoint of a pretraining run')
    parser.add_argument('images', nargs='+', help='image files, or folders of them')
    parser.add_argument('--config', help='config to build the model from, instead of the one in the checkpoint')
    parser.add_argument('--out', default='reconstruction.png', help='picture to write')
    parser.add_argument('--seed', type=int, default=0, help='of the masks')
    parser.add_argument('--max-images', type=int, default=16, help='draw the first so many')
    args = parse_args(parser)

    from PIL import Image

    from bootmae_mm.interop.checkpoint import load_model
    from bootmae_mm.visualization import draw_reconstruction, reconstruct

    try:
        model, cfg = load_model(args.checkpoint, args.config)
        paths = find_images(args.images)[: args.max_images]
        batch = load_batch(paths, model.backbone.img_size, dict(cfg.train_dataloader.dataset.masking), args.seed)
        batch = model.data_preprocessor(batch)
        panels = reconstruct(model, batch['inputs'], batch['ids_keep'], batch['ids_mask'])
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    names = [Path(path).name[:24] for path in paths]
    Image.fromarray(draw_reconstruction(panels, names)).save(args.out)
    print(f'{len(paths)} images -> {args.out}')


def find_images(sources: list[str]) -> list[str]:
    """Files as they are, folders as the images below them."""
    from bootmae_mm.data import ImageFolder

    paths = []
    for source in sources:
        if Path(source).is_dir():
            folder = ImageFolder(data_root=source, pipeline=[])
            paths += [folder.get_data_info(i)['img_path'] for i in range(len(folder))]
        elif Path(source).is_file():
            paths.append(source)
        else:
            raise FileNotFoundError(f'no image or folder {source}')
    return paths


def load_batch(paths: list[str], size: tuple[int, int], masking: dict, seed: int) -> dict:
    """The middle of every image at the model's size, each with a mask."""
    import random

    import numpy as np
    from mmcv.transforms import Compose
    from mmengine.registry import init_default_scope

    from bootmae_mm.data import MaskSampling, collate

    init_default_scope('mmpretrain')
    height, width = size
    pipeline = Compose(
        [
            dict(type='bootmae_mm.LoadRGB'),
            dict(type='ResizeEdge', scale=max(height, width), edge='short', backend='pillow', interpolation='bicubic'),
            dict(type='CenterCrop', crop_size=(width, height)),  # this one takes the width first
            dict(type='bootmae_mm.PackImage'),
        ]
    )
    mask = MaskSampling(**masking)
    random.seed(seed)
    np.random.seed(seed)
    return collate([mask(pipeline(dict(img_path=path))) for path in paths])


if __name__ == '__main__':
    main()
