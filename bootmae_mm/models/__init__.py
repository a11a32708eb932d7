"""Models: algorithm, backbone, neck, heads."""

from .algorithm import BootMAE
from .backbone import BootMAEViT
from .heads import BootMAEFeatureHead, BootMAEPixelHead
from .neck import BootMAENeck
from .preprocessor import BootMAEDataPreprocessor
from .pyramid import SimpleFeaturePyramid

__all__ = [
    'BootMAE',
    'BootMAEDataPreprocessor',
    'BootMAEFeatureHead',
    'BootMAENeck',
    'BootMAEPixelHead',
    'BootMAEViT',
    'SimpleFeaturePyramid',
]
