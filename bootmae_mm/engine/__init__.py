"""The engine: schedules, hooks, optimizers, sharding."""

from .hooks import (
    BootMAEEMAHook,
    CheckpointHook,
    CheckSegmentationHook,
    CompileHook,
    CurvesHook,
    FeatureWeightHook,
    InterruptionHook,
    MaskingScheduleHook,
    MonitorHook,
    ReconstructionHook,
)
from .loops import EpochLoop, IterLoop
from .optimizers import AutocastOptimWrapper, GroupedOptimWrapperConstructor, LayerDecayOptimWrapperConstructor
from .sharding import FullyShardedDataParallel

__all__ = [
    'AutocastOptimWrapper',
    'BootMAEEMAHook',
    'CheckSegmentationHook',
    'CheckpointHook',
    'CompileHook',
    'CurvesHook',
    'EpochLoop',
    'FeatureWeightHook',
    'FullyShardedDataParallel',
    'GroupedOptimWrapperConstructor',
    'InterruptionHook',
    'MaskingScheduleHook',
    'IterLoop',
    'LayerDecayOptimWrapperConstructor',
    'MonitorHook',
    'ReconstructionHook',
]
