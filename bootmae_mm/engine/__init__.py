"""The engine: schedules, hooks, optimizers."""

from .hooks import BootMAEEMAHook, CurvesHook, FeatureWeightHook, MonitorHook, ReconstructionHook
from .optimizers import AutocastOptimWrapper, GroupedOptimWrapperConstructor, LayerDecayOptimWrapperConstructor

__all__ = [
    'AutocastOptimWrapper',
    'BootMAEEMAHook',
    'CurvesHook',
    'FeatureWeightHook',
    'GroupedOptimWrapperConstructor',
    'LayerDecayOptimWrapperConstructor',
    'MonitorHook',
    'ReconstructionHook',
]
