"""Command-line arguments that tools share; apart, so that ``--help`` imports little."""

from __future__ import annotations

import argparse

from bootmae_mm.checkpoints.trust import choose_trust
from bootmae_mm.options import Unparsed


class OptionsAction(argparse.Action):
    """Collects ``KEY=VALUE``; values are parsed once the config is known, see ``config.parse_value``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Add to what an earlier ``--cfg-options`` has given."""
        options = dict(getattr(namespace, self.dest, None) or {})
        assert isinstance(values, list)
        for text in values:
            key, equals, value = text.partition('=')
            if not equals or not key:
                parser.error(f'--cfg-options takes KEY=VALUE, not {text!r}')
            options[key] = Unparsed(value)
        setattr(namespace, self.dest, options)


def cfg_options_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        default={},
        metavar='KEY=VALUE',
        help='override keys of the config, e.g. data_root=/images train_dataloader.batch_size=64',
    )


def parse_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line of a tool that reads checkpoints; adds ``--trust-checkpoint``."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read checkpoints that hold more than data: code in them is run, so only if you know who made them',
    )
    args = parser.parse_args()
    choose_trust(args.trust_checkpoint)
    return args


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share, named as in mmpretrain."""
    parser.add_argument('config', help='path of the config')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/NAME_OF_CONFIG)')
    cfg_options_argument(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help='set by launchers, not by hand')
