"""Arguments that several commands share; a light module, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from bootmae_mm.options import Unparsed


class OptionsAction(argparse.Action):
    """Collects ``KEY=VALUE``; values are parsed once the config is known."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Add to the options of an earlier ``--cfg-options``."""
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


def channels_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--channels``, for commands that draw images."""
    parser.add_argument(
        '--channels', type=int, nargs='+', help='one or three channels to show (default: the first three)'
    )


def trust_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``, for commands that read checkpoints."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='also read checkpoints that contain code, and run it: only for files that you trust',
    )


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Within the block, turn a user's mistake into an exit with one line."""
    from bootmae_mm.validation import ConfigError  # not at the top: --help need not import pydantic

    try:
        yield
    except (ConfigError, OSError) as error:
        raise SystemExit(f'error: {error}') from error


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options shared by training and testing, named as in mmpretrain."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/NAME_OF_CONFIG)')
    cfg_options_argument(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help='set by launchers, not by hand')
