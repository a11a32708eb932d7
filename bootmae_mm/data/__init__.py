"""Data: datasets, samplers, transforms, masks."""

from .datasets import Digits, ImageFolder
from .labelled import LabelledFolder
from .masking import MaskSampling
from .samplers import SeededSampler
from .transforms import LoadRGB, PackImage, RandomFlip, RandomResizedCrop, RandomShift, collate

__all__ = [
    'Digits',
    'ImageFolder',
    'LabelledFolder',
    'LoadRGB',
    'MaskSampling',
    'PackImage',
    'RandomFlip',
    'RandomResizedCrop',
    'RandomShift',
    'SeededSampler',
    'collate',
]
