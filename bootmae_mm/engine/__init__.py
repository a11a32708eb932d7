"""The engine: schedules, hooks, optimizers."""

from .hooks import BootMAEEMAHook, CheckSegmentationHook, CurvesHook, FeatureWeightHook, MonitorHook, ReconstructionHook
from .optimizers import AutocastOptimWrapper, GroupedOptimWrapperConstructor, LayerDecayOptimWrapperConstructor

__all__ = [
    'AutocastOptimWrapper',
    'BootMAEEMAHook',
    'CheckSegmentationHook',
    'CurvesHook',
    'FeatureWeightHook',
    'GroupedOptimWrapperConstructor',
    'LayerDecayOptimWrapperConstructor',
    'MonitorHook',
    'ReconstructionHook',
]
