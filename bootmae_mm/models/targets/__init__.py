"""Targets: what a branch predicts for masked patches."""

from .base import ModelInfo, Target
from .codes import CodeTarget
from .errors import ErrorTarget
from .frozen import FrozenTarget
from .hog import HOGTarget
from .pixels import PixelTarget
from .teacher import TeacherTarget

__all__ = [
    'CodeTarget',
    'ErrorTarget',
    'FrozenTarget',
    'HOGTarget',
    'ModelInfo',
    'PixelTarget',
    'Target',
    'TeacherTarget',
]
