"""``bootmae_mm::NAME`` in configs: mmengine resolves such names for the packages in a table of its own only.

``_base_ = 'bootmae_mm::pretrain/bootmae_vitb.py'`` and ``get_config('bootmae_mm::...')`` need an entry in
``mmengine.config.utils.MODULE2PACKAGE``. Importing mmengine takes a second (it imports torch), so the entry is added
when mmengine is imported: a finder at the front of ``sys.meta_path`` waits for that module.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

NAME = 'mmengine.config.utils'
PACKAGE = 'bootmae_mm'


def _add(module: ModuleType) -> None:
    module.MODULE2PACKAGE.setdefault(PACKAGE, PACKAGE)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the module as everyone does, and adds the entry once it has run."""

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_add(module: ModuleType) -> None:
            execute(module)
            _add(module)

        spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
        return spec


def register_scope() -> None:
    """Let mmengine resolve ``bootmae_mm::``; importing bootmae_mm does."""
    if NAME in sys.modules:
        _add(sys.modules[NAME])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
