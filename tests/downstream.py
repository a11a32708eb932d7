"""Tiny forms of the downstream configs, and data in their layouts."""

from __future__ import annotations

import json
from pathlib import Path

from bootmae_mm.engine.launch import prepare, read_config
from examples.digit_scenes import write_scenes
from tests.conftest import ROOT

SIZES = {
    (2048, 512): (128, 64),
    (1333, 800): (96, 64),
    (1024, 1024): (80, 80),
    512: 64,
    1024: 80,
    640: 80,
    768: 96,
    896: 112,
    8192: 1024,
}


def write_data(root: Path) -> dict[str, Path]:
    """Write scenes in the layouts of the full-size configs; return the data_root of each task."""
    from mmdet.datasets import CocoDataset

    scenes = root / 'scenes'
    write_scenes(scenes, dict(training=6, validation=2), size=48)
    for split, folder in (('training', 'train2017'), ('validation', 'val2017')):
        # ADE20K's class 0 is wall; COCO has 80 classes, of which the first ten occur.
        path = scenes / f'instances_{split}.json'
        content = json.loads(path.read_text())
        names = CocoDataset.METAINFO['classes']
        content['categories'] = [dict(id=index + 1, name=name) for index, name in enumerate(names)]
        target = root / 'coco/annotations' / f'instances_{folder}.json'
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content))
        (root / 'coco' / folder).symlink_to(scenes / 'images' / split)
        (root / 'ade' / 'images').mkdir(parents=True, exist_ok=True)
        (root / 'ade' / 'annotations').mkdir(parents=True, exist_ok=True)
        for kind in ('images', 'annotations'):
            (root / 'ade' / kind / split).mkdir()
            for file in (scenes / kind / split).iterdir():
                # ADE20K's images end in .jpg; the suffix does not matter to the decoder.
                suffix = '.jpg' if kind == 'images' else '.png'
                (root / 'ade' / kind / split / (file.stem + suffix)).symlink_to(file)
        (root / 'imagenet').mkdir(exist_ok=True)
        (root / 'imagenet' / folder[:-4]).symlink_to(scenes / 'digits' / split)
    return dict(cls=root / 'imagenet', seg=root / 'ade', det=root / 'coco', scenes=scenes)


def shrink_sizes(node):
    """Replace sizes in pixels throughout a pipeline."""
    if isinstance(node, dict):
        return {
            key: value if key in ('num_classes', 'fill_color') else shrink_sizes(value) for key, value in node.items()
        }
    if isinstance(node, tuple) and node in SIZES:
        return SIZES[node]
    if isinstance(node, (list, tuple)):
        return type(node)(shrink_sizes(value) for value in node)
    return SIZES.get(node, node) if isinstance(node, int) else node


def tiny(name: str, data_root: Path, work_dir: Path, checkpoint: Path | None = None, **options):
    """A downstream config with a model of width 24, small images, and few iterations."""
    short = {'seg': {'train_cfg.max_iters': 4, 'train_cfg.val_interval': 4, 'default_hooks.checkpoint.interval': 4}}
    epochs = {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1} if 'knn' not in name else {}
    task = name.split('/')[0]
    size = {'cls': {'img_size': 32}, 'seg': {'crop_size': (64, 64)}}.get(task, {})  # stated once
    options = {'data_root': str(data_root), **size, **short.get(task, epochs), **options}
    cfg = read_config(str(ROOT / f'configs/{name}.py'), options, work_dir=str(work_dir))
    backbone = cfg.model.backbone
    depth = 24 if backbone.arch == 'l' else 12
    old, new = (1024 if backbone.arch == 'l' else 768), 24
    backbone.arch = dict(embed_dims=24, num_layers=depth, num_heads=3, feedforward_channels=48)
    if task == 'det':
        backbone.img_size = 80
    backbone.init_cfg.checkpoint = str(checkpoint)
    if checkpoint is None:
        backbone.init_cfg = None
    if backbone.get('window_size'):
        backbone.window_size = 2
    backbone.patch_size = 16 if backbone.img_size != 32 else 8

    def shrink(node, widths):
        if isinstance(node, dict):
            for key, value in node.items():
                if isinstance(value, (dict, list)):
                    shrink(value, widths)
                    if isinstance(value, list) and all(item == old for item in value):
                        node[key] = [new] * len(value)
                elif key in ('in_channels', 'embed_dim', 'input_features') and value == old:
                    node[key] = new
                elif key in widths and isinstance(value, int):
                    node[key] = widths[key]
        elif isinstance(node, list):
            for value in node:
                shrink(value, widths)

    if task == 'seg':
        for part in ('neck', 'decode_head', 'auxiliary_head'):
            shrink(cfg.model[part], dict(channels=8))
    if task == 'det':
        widths = dict(out_channels=16, feat_channels=16, conv_out_channels=16, fc_out_channels=16, num_convs=1)
        for part in ('neck', 'rpn_head', 'roi_head'):
            shrink(cfg.model[part], widths)
        for part in (cfg.model.rpn_head, cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
            part.in_channels = 16
        cfg.model.test_cfg.rcnn.score_thr = 0.0  # an untrained model has low scores
    if task == 'cls':
        for part in ('neck', 'head'):
            shrink(cfg.model.get(part) or {}, {})
        cfg.model.head.num_classes = cfg.model.data_preprocessor.num_classes = 10
    for part in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg[part]
        loader.batch_size, loader.num_workers, loader.persistent_workers = 2, 0, False
        loader.dataset.pipeline = shrink_sizes(loader.dataset.pipeline)
    if cfg.get('optim_wrapper') and cfg.optim_wrapper.type == 'AmpOptimWrapper':
        cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.visualizer.vis_backends = [dict(type='bootmae_mm.LocalVisBackend')]
    cfg.default_hooks.logger.interval = 1
    prepare(cfg)
    return cfg
