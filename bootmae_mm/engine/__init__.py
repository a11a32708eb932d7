"""The engine: schedules, hooks, optimizers."""

from .hooks import BootMAEEMAHook, CurvesHook, FeatureWeightHook, MonitorHook, ReconstructionHook
from .optimizers import AutocastOptimWrapper, GroupedOptimWrapperConstructor

__all__ = [
    'AutocastOptimWrapper',
    'BootMAEEMAHook',
    'CurvesHook',
    'FeatureWeightHook',
    'GroupedOptimWrapperConstructor',
    'MonitorHook',
    'ReconstructionHook',
]
