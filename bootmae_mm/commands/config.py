"""List the configs that come with the package, print one with all inherited keys, or copy one to start your own.

Examples:
    bootmae config
    bootmae config pretrain/bootmae_vitb.py
    bootmae config pretrain/bootmae_vitb.py --cfg-options masking.ratio=0.6
    bootmae config pretrain/bootmae_vitb.py --child mine.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bootmae_mm.installed import SCOPE, config_file, installed_configs

from .arguments import cfg_options_argument, errors_in_one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('config', nargs='?', help='path or name of a config; without it, all names are listed')
    parser.add_argument('--child', metavar='FILE', help='write a new config that inherits from CONFIG')
    cfg_options_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.config is None:
        print('\n'.join(installed_configs()))
        return
    name = args.config
    if not Path(name).is_file() and config_file(SCOPE + name.removeprefix(SCOPE)).is_file():
        name = SCOPE + name.removeprefix(SCOPE)
    with errors_in_one_line():
        if args.child:
            _write_child(name, Path(args.child))
            return
        from bootmae_mm.config import load_config

        print(load_config(name, args.cfg_options).pretty_text)


def _write_child(name: str, child: Path) -> None:
    from bootmae_mm.validation import MissingFileError, require

    if not config_file(name).is_file():
        raise MissingFileError(f'no config {name}')
    require(not child.exists(), f'{child} is there already')
    base = name if name.startswith(SCOPE) else Path(name).resolve().as_posix()
    child.write_text(f'_base_ = {base!r}\n', encoding='utf-8')
    print(f'{child} inherits from {base}; train it with: bootmae train {child}')
