"""Features of the model's teacher."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bootmae_mm.registry import MODELS
from bootmae_mm.validation import Few, require, validated

from ..step import Step
from .base import ModelInfo, Target


@MODELS.register_module()
class TeacherTarget(Target):
    """Features of the teacher: the momentum encoder, or the frozen encoder of ``model.teacher``.

    Args:
        info: Facts of the model.
        norm: Take the last block's output after the final norm instead of before it.
        top_k: 1 for the output of the last block; otherwise the mean over the last ``top_k`` blocks, each output
            normalized on its own, as in data2vec.
    """

    uses_teacher = True

    @validated
    def __init__(self, info: ModelInfo, norm: bool = False, top_k: Few = 1, init_cfg: Any = None) -> None:
        super().__init__(init_cfg=init_cfg)
        layers = info.teacher_layers
        require(top_k <= layers, f'top_k must be at most the {layers} blocks of the teacher, but is {top_k}')
        require(not (norm and top_k > 1), 'norm=True is for top_k=1: several blocks are normalized each on its own')
        self.norm = norm
        self.top_k = top_k
        self.dims = info.teacher_dims

    def forward(self, images: Tensor, ids_mask: Tensor, step: Step | None = None) -> Tensor:
        """Features of the masked patches: (B * K, M) -> (B * K, M, D)."""
        assert step is not None and step.teacher is not None
        return step.teacher.features(ids_mask, self.norm, self.top_k)
