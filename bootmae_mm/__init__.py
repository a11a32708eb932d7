"""BootMAE pretraining for OpenMMLab.

Importing this package is cheap: it checks which distributions are installed (without importing them), registers the
stand-in for mmcv's compiled operators, which acts only where those are missing, and lets mmengine resolve
``bootmae_mm::`` in configs and mmpretrain find the models by name. The components are imported when a registry of
:mod:`bootmae_mm.registry` is first asked for one; the functions below when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .compat.distributions import check_requirements
from .compat.names import register_names
from .compat.operators import register_stand_in
from .version import __version__

if TYPE_CHECKING:
    from .engine.training import pretrain
    from .features import embed, load_encoder, probe

check_requirements()
register_stand_in()
register_names()

_FUNCTIONS = dict(pretrain='engine.training', embed='features', load_encoder='features', probe='features')

__all__ = ['__version__', 'embed', 'load_encoder', 'pretrain', 'probe']


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'.{_FUNCTIONS[name]}', __name__), name)
