"""Errors of another branch: how hard patches are."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from bootmae_mm.registry import MODELS
from bootmae_mm.validation import validated

from ..step import Step
from .base import ModelInfo, Target


@MODELS.register_module()
class ErrorTarget(Target):
    """The error that another branch makes in every masked patch (HPM, arXiv 2304.05919).

    Args:
        info: Facts of the model.
        branch: Name of that branch, which the neck lists before this one.
    """

    dims = 1

    @validated
    def __init__(
        self,
        info: ModelInfo,  # noqa: ARG002
        branch: Annotated[str, Field(min_length=1)] = 'pixel',
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.branch = branch

    def forward(self, images: Tensor, ids_mask: Tensor, step: Step | None = None) -> Tensor:  # noqa: ARG002
        """Errors of the masked patches, (B * K, M, 1)."""
        assert step is not None
        return step.errors[self.branch][:, :, None]
