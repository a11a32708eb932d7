"""Names of this project in OpenMMLab: ``bootmae_mm::NAME`` in configs, and models in mmpretrain's ``get_model``.

mmengine resolves ``_base_ = 'bootmae_mm::pretrain/bootmae_vitb.py'`` and ``get_config('bootmae_mm::...')`` for packages
in a table of its own only, and mmpretrain lists the models of its own index only. Importing either takes seconds (both
import torch), so the entries are added when they are imported: a finder at the front of ``sys.meta_path`` waits for
their modules. Messages for debugging that mmseg, mmdet and mmpretrain print on import are dropped in the same way.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from bootmae_mm.installed import PACKAGE as FOLDER
from bootmae_mm.installed import root

PACKAGE = 'bootmae_mm'


def _add_package(module: ModuleType) -> None:
    module.MODULE2PACKAGE.setdefault(PACKAGE, PACKAGE)


def _find_package(module: ModuleType) -> None:
    """Let the original mmengine find an editable install, which it does in its own folder only."""
    original = module.get_installed_path

    def get_installed_path(package: str) -> str:
        return str(FOLDER) if package == PACKAGE else original(package)

    vars(module)['get_installed_path'] = get_installed_path


def _keep_scope(module: ModuleType) -> None:
    """Let the parts of our configs be looked up in their ``default_scope``, also in configs that inherit them.

    mmengine would look for all of them in the scope of the package they come from: mmseg's ``EncoderDecoder`` in ours.
    """
    original = module.Config._get_cfg_path

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        path, scope = original(cfg_path, filename)
        return path, None if scope == PACKAGE else scope

    module.Config._get_cfg_path = staticmethod(get_cfg_path)
    _find_package(module)


def _add_models(module: ModuleType) -> None:
    if not module.ModelHub.has('bootmae_vitb'):
        module.ModelHub.register_model_index(root() / 'model-index.yml', config_prefix=root())


def _print_no_debug_messages(module: ModuleType) -> None:
    """Let ``print_log`` without a logger respect ``level=logging.DEBUG``; mmengine's prints on the standard output."""
    original = module.print_log

    @functools.wraps(original)
    def print_log(msg: Any, logger: Any = None, level: int = logging.INFO) -> None:
        if logger is not None or level > logging.DEBUG:
            original(msg, logger, level)

    vars(module)['print_log'] = print_log


WAITING: dict[str, Callable[[ModuleType], None]] = {
    'mmengine.logging.logger': _print_no_debug_messages,
    'mmengine.config.utils': _add_package,
    'mmengine.config.config': _keep_scope,
    'mmengine.hub.hub': _find_package,
    'mmpretrain.apis.model': _add_models,
}


class _WaitingFinder(importlib.abc.MetaPathFinder):
    """Finds a module as everyone does, and adds the entry once it has run."""

    def __init__(self) -> None:
        self.waiting = dict(WAITING)

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec that others find, whose loader adds the entry."""
        if fullname not in self.waiting:
            return None
        add = self.waiting.pop(fullname)  # so that the search below does not come here
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_add(module: ModuleType) -> None:
            execute(module)
            add(module)

        spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
        return spec


def register_names() -> None:
    """Add the names, now or when the modules are imported; importing bootmae_mm does."""
    if any(isinstance(finder, _WaitingFinder) for finder in sys.meta_path):
        return
    finder = _WaitingFinder()
    for name in WAITING:
        if name in sys.modules:
            finder.waiting.pop(name)(sys.modules[name])
    sys.meta_path.insert(0, finder)
