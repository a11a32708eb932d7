"""Models: algorithm, backbone, neck, heads, targets, losses, masks."""

from mmpretrain.models.backbones.hivit import BlockWithRPE

from .algorithm import BootMAE
from .backbone import BootMAEViT
from .block import EncoderBlock
from .clustering import ClusterHead, ClusterTarget, PatchSoftCrossEntropy
from .contrast import ContrastiveHead
from .heads import BootMAEFeatureHead, BootMAEHead, BootMAEPixelHead
from .hivit import BootMAEHiViT
from .losses import PatchCosine, PatchCrossEntropy, PatchMSE, PatchRanking, PatchSmoothL1
from .masking import AttentionMasking, PredictedErrorMasking
from .neck import BootMAENeck, DecoderBlock
from .preprocessor import BootMAEDataPreprocessor
from .pyramid import SimpleFeaturePyramid
from .targets import CodeTarget, ErrorTarget, FrozenTarget, HOGTarget, PixelTarget, Target, TeacherTarget

BLOCKS = (EncoderBlock, BlockWithRPE, DecoderBlock)  # what is compiled, and sharded, as one

__all__ = [
    'BLOCKS',
    'AttentionMasking',
    'BootMAE',
    'BootMAEDataPreprocessor',
    'BootMAEFeatureHead',
    'BootMAEHead',
    'BootMAEHiViT',
    'BootMAENeck',
    'BootMAEPixelHead',
    'BootMAEViT',
    'ClusterHead',
    'ClusterTarget',
    'CodeTarget',
    'ContrastiveHead',
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
