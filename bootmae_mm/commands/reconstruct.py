"""Draw reconstructions of a pretrained model: original, masked, reconstruction, prediction.

The model is built from the config inside the checkpoint (read as data, not run) or from --config.

Example:
    bootmae reconstruct work_dirs/bootmae_vitb/epoch_800.pth photo.jpg other.png --out reconstruction.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import channels_argument, errors_in_one_line, trust_argument

if TYPE_CHECKING:
    from mmengine.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('checkpoint', help='checkpoint of a pretraining run, or its folder')
    parser.add_argument('images', nargs='+', help='image files, or folders of them')
    parser.add_argument('--config', help='config to build the model from, instead of the one in the checkpoint')
    parser.add_argument('--out', default='reconstruction.png', help='picture to write')
    parser.add_argument('--seed', type=int, default=0, help='seed of the masks')
    channels_argument(parser)
    parser.add_argument('--max-images', type=int, default=16, help='draw only the first MAX_IMAGES images')
    trust_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from PIL import Image

    from bootmae_mm.checkpoints.reading import load_model
    from bootmae_mm.data.paths import images_of
    from bootmae_mm.engine.recovery import checkpoint_in
    from bootmae_mm.visualization import draw_panels, reconstruct

    with errors_in_one_line():
        model, cfg = load_model(checkpoint_in(args.checkpoint), args.config)
        paths = images_of(args.images)[: args.max_images]
        masking = dict(cfg.train_dataloader.dataset.masking)
        batch = load_batch(paths, model.backbone.img_size, loading_step(cfg), masking, args.seed)
        batch = model.data_preprocessor(batch)
        panels = reconstruct(model, batch['inputs'], batch['ids_keep'], batch['ids_mask'])
        names = [Path(path).name[:24] for path in paths]
        picture = draw_panels(panels, names, channels=args.channels)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(args.out)
    print(f'{len(paths)} images -> {args.out}')


def loading_step(cfg: Config) -> dict:
    """Step of the config's pipeline that reads a file, with the channels and value range of the training."""
    from bootmae_mm.checkpoints.saved_config import check_types

    pipeline = cfg.train_dataloader.dataset.get('pipeline') or []
    for step in pipeline:
        if step['type'].endswith(('LoadImage', 'LoadRGB', 'LoadImageFromFile')):
            check_types(step)
            return {key: value for key, value in step.items() if key != 'crop_size'}  # only for a warning
    return dict(type='bootmae_mm.LoadImage', channels=cfg.model.backbone.get('in_channels', 3))


def load_batch(paths: list[str], size: tuple[int, int], step: dict, masking: dict, seed: int) -> dict:
    """Center crops at the size of the model, each with a mask."""
    import random

    import numpy as np
    from mmengine.registry import TRANSFORMS, init_default_scope

    from bootmae_mm.data import PackImage, build_masking, collate
    from bootmae_mm.data.transforms import resize

    init_default_scope('mmpretrain')
    load, mask, pack = TRANSFORMS.build(step), build_masking(masking), PackImage()
    height, width = size
    samples = []
    random.seed(seed)
    np.random.seed(seed)
    for path in paths:
        img = load(dict(img_path=path))['img']  # (H, W, C)
        scale = max(size) / min(img.shape[:2])
        img = resize(img, (round(scale * img.shape[0]), round(scale * img.shape[1])))
        top, left = (img.shape[0] - height) // 2, (img.shape[1] - width) // 2
        samples.append(mask(pack(dict(img=img[top : top + height, left : left + width]))))
    return collate(samples)
