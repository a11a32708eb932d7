#!/usr/bin/env python3
"""Train: pretraining, or any other config of mmengine.

Examples:
    python tools/train.py configs/pretrain/bootmae_vitb_folder.py --cfg-options data_root=/your/images
    tools/dist_train.sh configs/pretrain/bootmae_vitb.py 8
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from typing import TYPE_CHECKING

import bootmae_mm  # noqa: F401  before anything of OpenMMLab, for the operators

if TYPE_CHECKING:
    from mmengine.config import Config


def read_command_line() -> argparse.Namespace:
    from bootmae_mm.cli import common_arguments, parse_args

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common_arguments(parser)
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
    return parse_args(parser)


def configured(args: argparse.Namespace) -> Config:
    """The config with the command line applied, before a checkpoint is chosen in the locked work_dir."""
    from bootmae_mm.engine.launch import read_config, use_amp
    from bootmae_mm.validation import ConfigError

    cfg = read_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        if 'auto_scale_lr' not in cfg:
            raise ConfigError(f'{args.config} has no auto_scale_lr')
        cfg.auto_scale_lr.enable = True
    return cfg


def train(cfg: Config) -> None:
    """Check what can be checked before the first iteration, and train."""
    from bootmae_mm.engine.checks import (
        check_checkpoint,
        check_classes,
        check_loader,
        check_settings,
        check_validation,
    )
    from bootmae_mm.engine.launch import prepare
    from bootmae_mm.engine.runner import Runner

    check_settings(cfg)
    prepare(cfg)
    runner = Runner.from_cfg(cfg)
    check_loader(runner)
    check_classes(runner.model, runner.train_dataloader.dataset)
    check_validation(runner)
    if cfg.load_from:
        check_checkpoint(runner, cfg.load_from, complete=cfg.resume)
    try:
        runner.train()
    except (EOFError, ConnectionResetError, BrokenPipeError):
        # A worker of the loader died while sending a batch. A signal tells torch the reason in a moment, and it raises.
        time.sleep(5)
        raise


def main() -> None:
    args = read_command_line()
    from mmengine.logging import print_log

    from bootmae_mm.engine.hooks.interruption import Interrupted
    from bootmae_mm.engine.launch import exit_with, finish, launched_rank
    from bootmae_mm.engine.recovery import choose_start, lock

    restarted = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0
    held = None
    try:
        cfg = configured(args)
        # Held until this process ends, however it ends.
        held = lock(cfg.work_dir, restarted) if launched_rank(args.launcher) == 0 else None
        choose_start(cfg, args.resume, restarted)
        # With a full disk, the console still has each line of the log, and needs no traceback for each.
        logging.raiseExceptions = False
        train(cfg)
        finish(args.launcher)
    except Interrupted as interrupted:
        print_log(str(interrupted), logger='current', level=30)
        finish(args.launcher, interrupted.status, interrupted.left)
    except Exception as error:  # noqa: BLE001  raised again if it is a defect
        exit_with(error)
    finally:
        if held is not None:
            held.close()


if __name__ == '__main__':
    main()
