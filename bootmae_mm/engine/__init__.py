"""The engine: schedules, hooks, optimizer constructors."""

from .hooks import *  # noqa: F403
from .optimizers import GroupedOptimWrapperConstructor

__all__ = ['GroupedOptimWrapperConstructor']
