"""Hooks."""

from .monitor import MonitorHook
from .pictures import CurvesHook, ReconstructionHook
from .teacher import BootMAEEMAHook, FeatureWeightHook

__all__ = ['BootMAEEMAHook', 'CurvesHook', 'FeatureWeightHook', 'MonitorHook', 'ReconstructionHook']
