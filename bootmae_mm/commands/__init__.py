"""The commands of the console script ``bootmae``, one module each; tools/*.py run the same code.

A command is a module with a docstring (its help), ``add_arguments(parser)`` and ``run(args)``. It imports torch in
``run`` only, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from bootmae_mm.checkpoints.trust import choose_trust
from bootmae_mm.installed import root
from bootmae_mm.version import __version__

COMMANDS = {
    'train': 'pretrain on a folder of images, or train any config',
    'test': 'evaluate a checkpoint with the test set and metrics of a config',
    'embed': 'write the features of images to a file',
    'probe': 'classify labeled images by the features of an encoder',
    'knn': 'probe an encoder with k nearest neighbors, by a config',
    'study': 'run configs x seeds, probe each, and compare them in a table',
    'browse': 'draw training samples with their masks, before a run',
    'show': 'draw the features of images as colors, and what the class token attends to',
    'reconstruct': 'draw what a checkpoint reconstructs of masked images',
    'export': 'write an encoder for timm, transformers, mmpretrain or ONNX',
    'convert': "convert the authors' checkpoints, and back",
    'stats': 'measure channels and values of images, and write a config that reads them',
    'pack': 'pack a folder of images into a cache that is quick to read',
    'config': 'list the configs that come with the package, print one, or copy one',
}
# Scripts beside the package that `bootmae` starts as they are.
SCRIPTS = {'bench': ('benchmark.py', 'measure a training step and the loader on this machine')}


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``bootmae COMMAND ...``.

    Args:
        argv: Arguments after ``bootmae``; by default those of the process.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    name = given[0] if given else '--help'
    if name == '--version':
        print(__version__)
    elif name in ('-h', '--help'):
        print(_overview())
    elif name in COMMANDS:
        run_command(name, given[1:], f'bootmae {name}')
    elif name in SCRIPTS:
        _run_script(root() / 'tools' / SCRIPTS[name][0], given[1:])
    else:
        raise SystemExit(f'error: unknown command {name!r}; commands: {", ".join([*COMMANDS, *SCRIPTS])}')


def run_command(name: str, argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run one command.

    Args:
        name: Name in :data:`COMMANDS`.
        argv: Its arguments; by default those of the process.
        prog: Name of the program in the help; by default that of the process.
    """
    # Before torch is imported: threads that wait for each other by spinning take the core from those they wait for when
    # another process runs on this machine. Sleeping costs nothing measurable otherwise.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    module = importlib.import_module(f'bootmae_mm.commands.{name}')
    parser = argparse.ArgumentParser(
        prog=prog, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    args = parser.parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else argv
    args.usage_error = parser.error
    choose_trust(getattr(args, 'trust_checkpoint', False))
    module.run(args)


def _overview() -> str:
    lines = [f'  {name:12} {text}' for name, text in COMMANDS.items()]
    lines += [f'  {name:12} {text}' for name, (_, text) in SCRIPTS.items()]
    return '\n'.join(
        [
            'usage: bootmae COMMAND [options]',
            '',
            'BootMAE pretraining: from a folder of images to features.',
            '',
            *lines,
            '',
            '  bootmae train --data images/ --out run',
            '  bootmae embed run images/ --to features.npy',
            '  bootmae export run --to timm',
            '',
            '`bootmae COMMAND --help` lists the options of a command.',
        ]
    )


def _run_script(path: os.PathLike, argv: Sequence[str]) -> NoReturn:
    """Replace this process by a script."""
    os.execv(sys.executable, [sys.executable, os.fspath(path), *argv])
