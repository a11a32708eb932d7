"""Data: datasets, samplers, transforms, masks."""

from .archives import ImageArchives
from .base import UnlabeledImages
from .datasets import Digits, ImageFolder
from .hugging_face import HuggingFaceImages
from .labelled import LabelledFolder
from .loading import LoadImage
from .mask_types import InverseBlockSampling, UniformSampling, build_masking
from .masking import MaskSampling
from .samplers import SeededSampler
from .transforms import (
    MapLabels,
    PackImage,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    RandomShift,
    Repeat,
    ResizeEdge,
    ShiftedView,
    collate,
)

__all__ = [
    'Digits',
    'HuggingFaceImages',
    'ImageArchives',
    'ImageFolder',
    'InverseBlockSampling',
    'LabelledFolder',
    'LoadImage',
    'MapLabels',
    'MaskSampling',
    'PackImage',
    'RandomErasing',
    'RandomFlip',
    'RandomResizedCrop',
    'RandomShift',
    'Repeat',
    'ResizeEdge',
    'SeededSampler',
    'ShiftedView',
    'UniformSampling',
    'UnlabeledImages',
    'build_masking',
    'collate',
]
