"""Command-line arguments that tools share; apart, so that ``--help`` imports little."""

from __future__ import annotations

import argparse

from mmengine.config import DictAction


def cfg_options_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override keys of the config, e.g. data_root=/images train_dataloader.batch_size=64',
    )


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share, named as in mmpretrain."""
    parser.add_argument('config', help='path of the config')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/NAME_OF_CONFIG)')
    cfg_options_argument(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help='set by launchers, not by hand')
