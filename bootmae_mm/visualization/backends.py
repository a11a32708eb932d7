"""mmengine's visualization backends, which log an error instead of ending a run when the disk is full."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from mmengine.logging import print_log
from mmengine.visualization import LocalVisBackend as MMEngineLocalVisBackend
from mmengine.visualization import TensorboardVisBackend as MMEngineTensorboardVisBackend

from bootmae_mm.registry import VISBACKENDS

REOPEN_AFTER = 60.0  # seconds


def _log_failures(method: Callable) -> Callable:
    @wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        if time.monotonic() < getattr(self, 'silent_until', 0.0):
            return
        try:
            method(self, *args, **kwargs)
        except OSError as error:
            name = type(self).__name__
            print_log(f'{name} could not write, training continues: {error}', logger='current', level=40)
            self.on_failure()

    return wrapper


class _Tolerant:
    """Mixin: methods that write log an error where the file system refuses."""

    def __init_subclass__(cls) -> None:
        for name in ('add_config', 'add_graph', 'add_image', 'add_scalar', 'add_scalars', 'close'):
            setattr(cls, name, _log_failures(getattr(cls, name)))

    def on_failure(self) -> None:
        """Prepare for the next attempt."""


@VISBACKENDS.register_module()
class LocalVisBackend(_Tolerant, MMEngineLocalVisBackend):
    """Local files: config, scalars as JSON lines, pictures."""


@VISBACKENDS.register_module()
class TensorboardVisBackend(_Tolerant, MMEngineTensorboardVisBackend):
    """TensorBoard."""

    def on_failure(self) -> None:
        """Open another file later: a writer that has failed stays closed."""
        self._env_initialized = False
        self.silent_until = time.monotonic() + REOPEN_AFTER
