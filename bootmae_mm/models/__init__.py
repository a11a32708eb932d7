"""Models: algorithm, backbone, neck, heads, targets, losses, masks."""

from .algorithm import BootMAE
from .backbone import BootMAEViT
from .clustering import ClusterHead, ClusterTarget, PatchSoftCrossEntropy
from .heads import BootMAEFeatureHead, BootMAEHead, BootMAEPixelHead
from .losses import PatchCosine, PatchCrossEntropy, PatchMSE, PatchRanking, PatchSmoothL1
from .masking import AttentionMasking, PredictedErrorMasking
from .neck import BootMAENeck
from .preprocessor import BootMAEDataPreprocessor
from .pyramid import SimpleFeaturePyramid
from .targets import CodeTarget, ErrorTarget, FrozenTarget, HOGTarget, PixelTarget, Target, TeacherTarget

__all__ = [
    'AttentionMasking',
    'BootMAE',
    'BootMAEDataPreprocessor',
    'BootMAEFeatureHead',
    'BootMAEHead',
    'BootMAENeck',
    'BootMAEPixelHead',
    'BootMAEViT',
    'ClusterHead',
    'ClusterTarget',
    'CodeTarget',
    'ErrorTarget',
    'FrozenTarget',
    'HOGTarget',
    'PatchCosine',
    'PatchCrossEntropy',
    'PatchMSE',
    'PatchRanking',
    'PatchSmoothL1',
    'PatchSoftCrossEntropy',
    'PixelTarget',
    'PredictedErrorMasking',
    'SimpleFeaturePyramid',
    'Target',
    'TeacherTarget',
]
