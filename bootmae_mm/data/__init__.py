"""Data: datasets, samplers, transforms, masks."""

from .datasets import Digits, ImageFolder
from .masking import MaskSampling
from .samplers import SeededSampler
from .transforms import LoadRGB, PackImage, collate

__all__ = ['Digits', 'ImageFolder', 'LoadRGB', 'MaskSampling', 'PackImage', 'SeededSampler', 'collate']
