"""Hooks."""

from .teacher import BootMAEEMAHook, FeatureWeightHook

__all__ = ['BootMAEEMAHook', 'FeatureWeightHook']
