"""Probe an encoder with k nearest neighbors: cosine, votes weighted by exp(cosine / temperature).

The features are the output of the model's neck; in configs/cls/bootmae_vitb_knn.py that is the mean patch token.
Takes checkpoints of pretraining (this project's, the authors', mmpretrain's MAE, timm's names) and fine-tuned ones.

Example:
    bootmae knn configs/cls/bootmae_vitb_knn.py work_dirs/bootmae_vitb/epoch_800.pth
    bootmae knn CONFIG CHECKPOINT --prefix teacher. --cfg-options data_root=/your/images
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .arguments import cfg_options_argument, trust_argument

if TYPE_CHECKING:  # imported where it is used, so that --help is quick
    from torch import Tensor, nn
    from torch.utils.data import DataLoader


def features_of(model: nn.Module, loader: DataLoader, name: str) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of a data set, on the model's device."""
    import torch
    from mmengine.utils import ProgressBar

    features: list[Tensor] = []
    labels: list[int] = []
    bar = ProgressBar(len(loader))
    print(f' {name}', flush=True)
    for batch in loader:
        data = model.data_preprocessor(batch, training=False)
        features.append(model.extract_feat(data['inputs'], stage='neck')[-1].float())
        labels.extend(int(sample.gt_label) for sample in data['data_samples'])
        bar.update()
    print()
    return torch.cat(features), torch.tensor(labels, device=features[0].device)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path or URL of the checkpoint, or the folder of a run')
    parser.add_argument('--prefix', help="prefix of the encoder's keys: backbone. (default) or teacher.")
    parser.add_argument('--k', type=int, nargs='+', help="numbers of neighbors (default: the config's)")
    parser.add_argument('--temperature', type=float, help="temperature of the votes (default: the config's)")
    parser.add_argument('--out', help='write the accuracies to this JSON file')
    cfg_options_argument(parser)
    trust_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    import torch
    from mmengine.fileio import dump
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    from bootmae_mm.engine.checks import check_same_classes
    from bootmae_mm.engine.launch import exit_with, prepare, read_config
    from bootmae_mm.engine.recovery import checkpoint_in
    from bootmae_mm.evaluation import knn_accuracies
    from bootmae_mm.registry import MODELS

    try:
        cfg = read_config(args.config, args.cfg_options)
        prepare(cfg, training=False)
        init_default_scope(cfg.default_scope)
        given = cfg.get('knn', {})
        ks = tuple(args.k or given.get('k', (5, 10, 20)))
        temperature = given.get('temperature', 0.07) if args.temperature is None else args.temperature
        cfg.model.backbone.init_cfg = dict(
            type='Pretrained', checkpoint=checkpoint_in(args.checkpoint), prefix=args.prefix
        )
        model = MODELS.build(cfg.model)
        model.backbone.init_weights()
        model.to('cuda' if torch.cuda.is_available() else 'cpu')
        model.train(False)
        loaders = {}
        for name in ('train', 'test'):
            # Every image once, in order: a loader for training shuffles and drops the last ones.
            options = cfg[f'{name}_dataloader']
            options.sampler = dict(type='DefaultSampler', shuffle=False)
            options.drop_last = False
            loaders[name] = Runner.build_dataloader(options)
        train_classes, test_classes = (
            getattr(loader.dataset, 'metainfo', {}).get('classes') for loader in loaders.values()
        )
        check_same_classes(train_classes, test_classes, 'training and test set')
        with torch.no_grad():
            data = {name: features_of(model, loader, name) for name, loader in loaders.items()}
            accuracies = knn_accuracies(*data['train'], *data['test'], ks, temperature)
    except Exception as error:  # noqa: BLE001  raised again if it is a defect
        exit_with(error)
    train, test = len(data['train'][1]), len(data['test'][1])
    print(f'{train} training images, {test} test images, {data["train"][0].shape[1]} features each')
    for k, accuracy in accuracies.items():
        print(f'k = {k:3}: {100 * accuracy:.2f} %')
    if args.out:
        dump({'train_images': train, 'test_images': test, 'accuracy': accuracies}, args.out)
