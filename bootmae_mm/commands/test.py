"""Evaluate a checkpoint with the test set and metrics of a config.

For pretraining these are the losses on held-out images.

Examples:
    bootmae test configs/pretrain/bootmae_vitb.py work_dirs/bootmae_vitb/epoch_800.pth
    tools/dist_test.sh configs/pretrain/bootmae_vitb.py work_dirs/bootmae_vitb/epoch_800.pth 8
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import common_arguments, trust_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    common_arguments(parser)
    parser.add_argument('--out', help='write the metrics to this JSON file')
    trust_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from mmengine.dist import is_main_process
    from mmengine.fileio import dump
    from mmengine.runner import Runner

    from bootmae_mm.engine.checks import built, check_checkpoint, check_classes, check_dataset, check_same_classes
    from bootmae_mm.engine.launch import exit_with, finish, prepare, read_config
    from bootmae_mm.validation import MissingFileError

    try:
        cfg = read_config(args.config, args.cfg_options, args.work_dir, args.launcher)
        if not Path(args.checkpoint).is_file():
            raise MissingFileError(f'no checkpoint {args.checkpoint}')
        cfg.load_from = args.checkpoint
        cfg.resume = False
        prepare(cfg, training=False)
        runner = Runner.from_cfg(cfg)
        meta = check_checkpoint(runner, args.checkpoint)
        dataset = built(cfg.test_dataloader.dataset, lambda: runner.test_loop.dataloader).dataset
        check_dataset(dataset)
        check_classes(runner.model, dataset)
        check_same_classes(
            (meta.get('dataset_meta') or {}).get('classes'),
            getattr(dataset, 'metainfo', {}).get('classes'),
            'the training of the checkpoint and the test set',
        )
        metrics = runner.test()
    except Exception as error:  # noqa: BLE001  raised again if it is a defect
        exit_with(error)
    if args.out and is_main_process():
        dump(metrics, args.out)
    finish(args.launcher)
