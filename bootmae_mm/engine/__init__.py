"""The engine: schedules, hooks, optimizers."""

from .hooks import (
    BootMAEEMAHook,
    CheckSegmentationHook,
    CompileHook,
    CurvesHook,
    FeatureWeightHook,
    MonitorHook,
    ReconstructionHook,
)
from .optimizers import AutocastOptimWrapper, GroupedOptimWrapperConstructor, LayerDecayOptimWrapperConstructor

__all__ = [
    'AutocastOptimWrapper',
    'BootMAEEMAHook',
    'CheckSegmentationHook',
    'CompileHook',
    'CurvesHook',
    'FeatureWeightHook',
    'GroupedOptimWrapperConstructor',
    'LayerDecayOptimWrapperConstructor',
    'MonitorHook',
    'ReconstructionHook',
]
