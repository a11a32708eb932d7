"""Pretrain on a folder of images, or train any config of mmengine.

With --data alone, length, batch, lr and workers are chosen from the images and the machine, and all GPUs are used.
With a config, one process runs; tools/dist_train.sh and tools/slurm_train.sh start more, also on several nodes.

Examples:
    bootmae train --data images/ --out run
    bootmae train --data images/ --out run --model vit_base --epochs 100 --resume
    bootmae train --data images/ --out run --init hf-hub:timm/vit_small_patch16_224.dino
    bootmae train bootmae_mm::pretrain/bootmae_vitb.py --data data/imagenet
    tools/dist_train.sh configs/pretrain/bootmae_vitb.py 8
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from .arguments import common_arguments, trust_argument

if TYPE_CHECKING:
    from mmengine.config import Config


WORK_DIR = 'work_dirs/bootmae_auto'  # without --out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('config', nargs='?', help='path or bootmae_mm::NAME of a config; default: chosen for --data')
    parser.add_argument(
        '--data',
        help='folder of images (data_root of the config); list (.txt, .csv, .parquet); archives (.tar, .zip, also URLs '
        'with {000..123}); hf://ORG/NAME',
    )
    parser.add_argument('--model', help='vit_tiny, vit_small (default), vit_base, vit_large, vit_huge; or vit_small/8')
    parser.add_argument(
        '--init',
        metavar='WEIGHTS',
        help='start from an encoder: file, folder, URL, hf-hub:ORG/NAME, official:bootmae_vitb',
    )
    parser.add_argument('--epochs', type=int, help='number of epochs')
    parser.add_argument('--batch-size', type=int, help='images of a process and iteration')
    parser.add_argument('--probe', metavar='FOLDER', help='folder of labeled images, to classify them during the run')
    parser.add_argument('--devices', type=int, help='number of processes (default: all GPUs; 1 with a config)')
    common_arguments(parser)
    parser.add_argument('--out', dest='work_dir', metavar='FOLDER', help='the same as --work-dir')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint; without a path, from the latest in the work_dir',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision (bfloat16) if the config has none')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale lr to the batch size of this run; see auto_scale_lr in the config',
    )
    trust_argument(parser)


def configured(args: argparse.Namespace) -> Config:
    """The config with the command line applied, before a checkpoint is chosen in the locked work_dir."""
    from bootmae_mm.engine.launch import read_config, use_amp
    from bootmae_mm.engine.training import AUTO_CONFIG, check_new, run_options
    from bootmae_mm.validation import ConfigError

    if args.config is None:
        if args.data is None:
            raise ConfigError('give a folder of images (--data FOLDER) or a config')
        if args.launcher == 'none':
            check_new(args.work_dir or WORK_DIR, args.resume is not None)
    options = run_options(args.data, args.model, args.init, args.epochs, args.batch_size, args.probe) | args.cfg_options
    cfg = read_config(args.config or AUTO_CONFIG, options, args.work_dir, args.launcher, args.resume)
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        if not cfg.get('auto_scale_lr'):
            raise ConfigError(f'{args.config or AUTO_CONFIG} has no auto_scale_lr')
        cfg.auto_scale_lr.enable = True
    return cfg


def start_processes(args: argparse.Namespace) -> None:
    """Replace this process by torchrun with several, if that is what is wanted."""
    from bootmae_mm.engine.training import check_new, launch_command, launch_environment, number_of_processes

    if args.launcher != 'none' or (args.config is not None and args.devices is None):
        return
    count = number_of_processes(args.devices)
    if count > 1:
        if args.config is None:
            check_new(args.work_dir or WORK_DIR, args.resume is not None)
        command = launch_command(count, args.argv)
        os.execve(command[0], command, launch_environment())


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from mmengine.logging import print_log

    from bootmae_mm.engine.hooks.interruption import Interrupted
    from bootmae_mm.engine.launch import exit_with, finish
    from bootmae_mm.engine.training import start, work_dir_of

    try:
        start_processes(args)
        cfg = configured(args)
        with work_dir_of(cfg):
            start(cfg, args.resume)
            finish(args.launcher)
    except Interrupted as interrupted:
        print_log(str(interrupted), logger='current', level=30)
        finish(args.launcher, interrupted.status, interrupted.left)
    except Exception as error:  # noqa: BLE001  raised again if it is a defect
        exit_with(error)
