"""Losses of masked patches, and the weights of the patches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from bootmae_mm.registry import MODELS
from bootmae_mm.validation import Positive, Rate, validated


def loss_weights(ids_mask: Tensor, grid: tuple[int, int], weighted: bool = True) -> Tensor:
    """Weight of every masked patch in the losses: w = 1 + avg_pool3x3(mask), or ones.

    A patch inside a masked block weighs up to 2, a lone masked patch 1 + 1/9; zero padding counts in the average.
    Source: ``run_pretraining.py`` of the authors' code (``weight_mask``).

    Args:
        ids_mask: Indices of the masked patches, (B, M).
        grid: Rows and columns of patches.
        weighted: False for weights of one.

    Returns:
        Tensor (B, M), float32, in the order of ``ids_mask``.
    """
    if not weighted:
        return torch.ones(ids_mask.shape, device=ids_mask.device)
    mask = torch.zeros(len(ids_mask), grid[0] * grid[1], device=ids_mask.device)
    mask.scatter_(1, ids_mask, 1.0)  # (B, L), 1 = masked
    around = F.avg_pool2d(mask.view(-1, 1, *grid), kernel_size=3, stride=1, padding=1)  # (B, 1, rows, columns)
    return 1.0 + around.flatten(1).gather(1, ids_mask)


class PatchLoss(BaseModule):
    """Base class: a subclass defines ``forward``, the error of every masked patch.

    The loss is the weighted mean over masked patches, which equals the authors' mean over all patches divided by
    mean(mask).
    """

    kind: str = 'numbers'  # of the target: numbers, codes or distributions
    dims: int | None = None  # numbers per patch that it needs; any by default

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Error of every patch: (B, M, ...), (B, M, ...) or codes (B, M) -> (B, M), float32."""
        raise NotImplementedError


@MODELS.register_module()
class PatchMSE(PatchLoss):
    """Squared error, averaged over the numbers of a patch: the authors' loss."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, M, ...), (B, M, ...) -> (B, M)."""
        return (prediction.float() - target.float()).square().flatten(2).mean(2)


@MODELS.register_module()
class PatchSmoothL1(PatchLoss):
    """Smooth L1 error, averaged over the numbers of a patch (data2vec).

    Args:
        beta: Error up to which it is quadratic.
    """

    @validated
    def __init__(self, beta: Positive = 1.0, init_cfg: Any = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.beta = beta

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, M, ...), (B, M, ...) -> (B, M)."""
        errors = F.smooth_l1_loss(prediction.float(), target.float(), beta=self.beta, reduction='none')  # (B, M, ...)
        return errors.flatten(2).mean(2)


@MODELS.register_module()
class PatchCosine(PatchLoss):
    """1 - cosine of prediction and target (MVP, EVA)."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, M, ...), (B, M, ...) -> (B, M)."""
        return 1.0 - F.cosine_similarity(prediction.float().flatten(2), target.float().flatten(2), dim=2)


@MODELS.register_module()
class PatchCrossEntropy(PatchLoss):
    """Cross-entropy of a code per patch (BEiT).

    Args:
        label_smoothing: Share of the probability that is spread over all codes.
    """

    kind = 'codes'

    @validated
    def __init__(self, label_smoothing: Rate = 0.0, init_cfg: Any = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.label_smoothing = label_smoothing

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Logits (B, M, codes), codes (B, M) -> (B, M)."""
        logits = prediction.float().transpose(1, 2)  # (B, codes, M)
        return F.cross_entropy(logits, target, reduction='none', label_smoothing=self.label_smoothing)


@MODELS.register_module()
class PatchRanking(PatchLoss):
    """How well the predictions, one number per patch, rank the patches of an image by the target (HPM).

    For every pair of patches, the cross-entropy of sigmoid(difference of the predictions) and which target is larger;
    averaged over the other patches. Source: ``forward_learning_loss(relative=True)`` of HPM (arXiv 2304.05919).
    """

    dims = 1

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, M, 1), (B, M, 1) -> (B, M)."""
        prediction, target = prediction.float().flatten(1), target.float().flatten(1)  # (B, M)
        difference = prediction[:, :, None] - prediction[:, None]  # (B, M, M)
        larger = target[:, :, None] - target[:, None]  # (B, M, M); its sign is what the difference should have
        errors = -F.logsigmoid(difference * larger.sign()) * (larger != 0)  # equal targets, as on the diagonal: none
        return errors.sum(2) / max(1, target.shape[1] - 1)
