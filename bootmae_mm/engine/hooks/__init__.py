"""Hooks."""

from .checkpoint import CheckpointHook
from .compilation import CompileHook
from .interruption import InterruptionHook
from .monitor import MonitorHook
from .pictures import CurvesHook, ReconstructionHook, ReportHook
from .probe import ProbeHook
from .progress import ProgressHook
from .segmentation import CheckSegmentationHook
from .teacher import BootMAEEMAHook, FeatureWeightHook, MaskingScheduleHook

__all__ = [
    'CheckSegmentationHook',
    'BootMAEEMAHook',
    'CheckpointHook',
    'CompileHook',
    'CurvesHook',
    'FeatureWeightHook',
    'InterruptionHook',
    'MaskingScheduleHook',
    'MonitorHook',
    'ProbeHook',
    'ProgressHook',
    'ReconstructionHook',
    'ReportHook',
]
