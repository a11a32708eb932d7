"""Clusters of the teacher's tokens as a target, learned during the run (CAPI, arXiv 2502.08769)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.model import BaseModule
from torch import Tensor, nn

from bootmae_mm.registry import MODELS
from bootmae_mm.validation import Count, Positive, Side, require, validated

from .heads import BootMAEHead
from .losses import PatchLoss
from .step import Step
from .targets import ModelInfo, Target
from .tokens import take_tokens

MAX_EXPONENT = 50.0  # of the largest logit of a cluster: far from overflow in float32


@torch.no_grad()
def sinkhorn(logits: Tensor, iterations: int = 3, eps: float = 1e-8) -> Tensor:
    """Soft assignments that use all clusters about equally, over the samples of all processes.

    Args:
        logits: (..., samples, clusters).
        iterations: Number of alternating normalizations of clusters and samples.
        eps: Number that is added to the sums.

    Returns:
        Tensor of the same shape, float32; each sample sums to 1.
    """
    logits = logits.float()
    largest = logits.amax(dim=-2, keepdim=True)  # (..., 1, clusters)
    all_reduce(largest, op='max')
    assignments = (logits - largest + MAX_EXPONENT).exp()  # (..., samples, clusters)
    for _ in range(iterations):
        total = assignments.sum(dim=-2, keepdim=True)  # (..., 1, clusters)
        all_reduce(total)
        assignments = assignments / (total + eps)  # each cluster sums to 1
        assignments = assignments / (assignments.sum(dim=-1, keepdim=True) + eps)  # each sample sums to 1
    return assignments


@MODELS.register_module()
class ClusterTarget(Target):
    """Soft assignments of the teacher's tokens to clusters, which this target learns (online clustering).

    A linear layer gives the logits of normalized tokens, Sinkhorn's iterations equalize the clusters at every position,
    and a cross-entropy moves the layer toward the result. No gradient reaches the teacher. Source: ``OnlineClustering``
    of CAPI. (Its authors train the layer with an optimizer of its own.)

    Args:
        info: Facts of the model.
        clusters: Number of clusters.
        iterations: Number of iterations of :func:`sinkhorn`.
        target_temperature: Divisor of the logits for the assignments.
        own_temperature: Divisor of the logits for their prediction.
    """

    uses_teacher = True
    kind = 'distributions'

    @validated
    def __init__(
        self,
        info: ModelInfo,
        clusters: Count = 16384,
        iterations: Count = 3,
        target_temperature: Positive = 0.06,
        own_temperature: Positive = 0.12,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.layer = nn.Linear(info.teacher_dims, clusters)
        self.dims = clusters
        self.iterations = iterations
        self.target_temperature, self.own_temperature = target_temperature, own_temperature

    def init_weights(self) -> None:
        """Normal weights with std 1, as in the authors' code."""
        super().init_weights()
        nn.init.normal_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, images: Tensor, ids_mask: Tensor, step: Step | None = None) -> Tensor:  # noqa: ARG002
        """Assignments of the masked patches, (B * K, M, clusters); ``step.target_loss`` is the loss of the layer."""
        assert step is not None and step.teacher is not None
        tokens = step.teacher.patch_tokens()  # (B, L, D)
        with torch.enable_grad():
            logits = self.layer(F.normalize(tokens.transpose(0, 1), dim=2, eps=1e-7)).float()  # (L, B, clusters)
            # Over the images of a batch, for every position on its own.
            assignments = sinkhorn(logits.detach() / self.target_temperature, self.iterations)  # (L, B, clusters)
            log_prediction = F.log_softmax(logits / self.own_temperature, dim=2)  # (L, B, clusters)
            step.target_loss = -(assignments * log_prediction).sum(2).mean()
        return take_tokens(assignments.transpose(0, 1), ids_mask)


@MODELS.register_module()
class PatchSoftCrossEntropy(PatchLoss):
    """Cross-entropy of soft assignments.

    Args:
        temperature: Divisor of the predicted logits.
    """

    kind = 'distributions'

    @validated
    def __init__(self, temperature: Positive = 0.12, init_cfg: Any = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.temperature = temperature

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Logits (B, M, clusters), assignments (B, M, clusters) -> (B, M)."""
        return -(target.float() * F.log_softmax(prediction.float() / self.temperature, dim=2)).sum(2)


@MODELS.register_module()
class ClusterHead(BootMAEHead):
    """Predicts the clusters of masked patches: cosines of the token with one direction per cluster, times a scale.

    The arguments are those of :class:`BootMAEHead`.
    """

    @validated
    def __init__(
        self,
        in_channels: Side,
        info: ModelInfo,
        target: dict = dict(type='bootmae_mm.ClusterTarget'),  # noqa: B006  not changed
        loss: dict = dict(type='bootmae_mm.PatchSoftCrossEntropy'),  # noqa: B006  not changed
        weighted: bool = True,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(in_channels, info, target, loss, weighted=weighted, init_cfg=init_cfg)
        require(self.target.kind == 'distributions', f'target must be a ClusterTarget, but is {target["type"]!r}')
        self.scale = nn.Parameter(torch.ones(self.target.dims))  # of the weight norm in the authors' code

    def _make_projection(self, in_channels: int, info: ModelInfo) -> nn.Module:  # noqa: ARG002
        return nn.Linear(in_channels, self.target.dims, bias=False)

    def init_weights(self) -> None:
        """Truncated normal weights with std 0.02, as in the authors' code; only their directions count."""
        BaseModule.init_weights(self)
        nn.init.trunc_normal_(self.projection.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, M, in_channels) -> logits (B, M, clusters)."""
        return F.linear(F.normalize(tokens, dim=2), F.normalize(self.projection.weight, dim=1)) * self.scale

    @torch.no_grad()
    def statistics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Numbers that reveal a collapse.

        Returns:
            ``target_entropy``: mean entropy of the assignments; ``mean_entropy``: entropy of their mean over the batch,
            at most log(clusters).
        """
        mean = target.flatten(0, 1).mean(0)  # (clusters,)
        return dict(
            target_entropy=-torch.xlogy(target, target).sum(2).mean(), mean_entropy=-torch.xlogy(mean, mean).sum()
        )
