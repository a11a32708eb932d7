"""Data: datasets, samplers, transforms, masks."""

from .datasets import Digits, ImageFolder
from .labelled import LabelledFolder
from .loading import LoadRGB
from .mask_types import InverseBlockSampling, UniformSampling, build_masking
from .masking import MaskSampling
from .pack_reader import PackedImages
from .samplers import SeededSampler
from .transforms import (
    MapLabels,
    PackImage,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    RandomShift,
    Repeat,
    ShiftedView,
    collate,
)

__all__ = [
    'Digits',
    'ImageFolder',
    'InverseBlockSampling',
    'LabelledFolder',
    'LoadRGB',
    'MapLabels',
    'MaskSampling',
    'PackImage',
    'PackedImages',
    'RandomErasing',
    'RandomFlip',
    'RandomResizedCrop',
    'RandomShift',
    'Repeat',
    'SeededSampler',
    'ShiftedView',
    'UniformSampling',
    'build_masking',
    'collate',
]
