"""A contrastive branch with a shifted second view (CMAE, arXiv 2207.13532)."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, get_rank
from mmpretrain.models.necks import NonLinearNeck
from torch import Tensor, nn

from bootmae_mm.registry import MODELS
from bootmae_mm.validation import Positive, Side, require, validated

from .heads import BranchHead
from .step import Step, TeacherView
from .targets import ModelInfo, Target


def info_nce(prediction: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Contrastive loss of every image, over the targets of all processes.

    Args:
        prediction: (B * K, D), for K masks per image.
        target: (B, D), without gradient; the first K predictions belong to the first.
        temperature: Divisor of the cosines.

    Returns:
        ``2 * temperature * cross-entropy``, (B * K,), and the share of images whose own target is the nearest.
    """
    prediction, target = F.normalize(prediction.float(), dim=1), F.normalize(target.float(), dim=1)
    others = torch.cat(all_gather(target))  # (processes * B, D)
    scores = prediction @ others.t() / temperature  # (B * K, processes * B)
    image = torch.arange(len(target), device=scores.device)  # (B,)
    labels = image.repeat_interleave(len(prediction) // len(target)) + get_rank() * len(target)  # (B * K,)
    errors = 2 * temperature * F.cross_entropy(scores, labels, reduction='none')
    return errors, (scores.argmax(1) == labels).float().mean()


def _mlp(in_channels: int, hidden: int, out_channels: int, norm_cfg: dict) -> NonLinearNeck:
    """Linear, norm, ReLU, linear, as CMAE's projector and predictor."""
    norm_cfg = {'eps': 1e-6, **norm_cfg}  # CMAE's
    if norm_cfg['type'] == 'BN':  # in mmcv, that of images; SyncBN becomes it where there is no GPU
        norm_cfg = {**norm_cfg, 'type': 'BN1d'}
    return NonLinearNeck(
        in_channels, hidden, out_channels, with_bias=True, with_last_bn=False, with_avg_pool=False, norm_cfg=norm_cfg
    )


class ViewTarget(Target):
    """The teacher's mean patch token of the second view, through a projector that follows the student's.

    As in CMAE's configs, the tokens are those before the final norm.

    Args:
        projector: The student's projector.
    """

    uses_teacher = True

    def __init__(self, projector: NonLinearNeck) -> None:
        super().__init__()
        self.projector = copy.deepcopy(projector).requires_grad_(False)

    def forward(self, images: Tensor, ids_mask: Tensor, step: Step | None = None) -> Tensor:  # noqa: ARG002
        """Projections of the second views, (B, dims)."""
        assert step is not None and step.teacher is not None
        advice = 'the pipeline needs bootmae_mm.ShiftedView before PackImage'
        require(step.view is not None, f'no second view in the batch: {advice}')
        second = TeacherView(step.teacher.teacher, step.view)
        tokens = second.patch_tokens(norm=False)  # (B, L, D)
        return self.projector((tokens.mean(1),))[0]  # (B, dims)


@MODELS.register_module()
class ContrastiveHead(BranchHead):
    """Contrasts the decoded tokens of an image with the second view of this and other images.

    The mean of the decoded masked patches goes through a projector and a predictor. (CMAE takes the mean of all
    patches.) The target is the teacher's view of another crop of the same image, shifted by some pixels
    (:class:`ShiftedView`).

    Args:
        in_channels: Width of the decoder; :class:`BootMAE` fills in this and the next.
        info: Facts of the model.
        hidden: Width of the hidden layers.
        dims: Width of the projections.
        temperature: Divisor of the cosines.
        norm_cfg: Config of the norms in projector and predictor.

    Raises:
        ConfigError: If the decoder is not as wide as the teacher, whose tokens go through a copy of the projector.
    """

    errors_per_patch = False

    @validated
    def __init__(
        self,
        in_channels: Side,
        info: ModelInfo,
        hidden: Side = 1536,
        dims: Side = 256,
        temperature: Positive = 0.07,
        norm_cfg: dict = dict(type='BN'),  # noqa: B006  not changed
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        kind = norm_cfg.get('type')
        require(kind in ('BN', 'BN1d', 'SyncBN', 'LN'), f'norm_cfg.type must be BN, SyncBN or LN, but is {kind!r}')
        fits = in_channels == info.teacher_dims
        require(fits, f'a contrastive branch needs a decoder of width {info.teacher_dims}, but it is {in_channels}')
        self.projector = _mlp(in_channels, hidden, dims, norm_cfg)
        self.predictor = _mlp(dims, hidden, dims, norm_cfg)
        self.target = ViewTarget(self.projector)
        self.temperature = temperature

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """The projector of the target follows that of the student."""
        return [(self.target.projector, self.projector)]

    def loss(self, tokens: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        """Contrast predictions and targets: (B * K, M, width), (B, dims) -> errors (B * K, 1), and scalars."""
        (projection,) = self.projector((tokens.mean(1),))  # (B * K, dims)
        (prediction,) = self.predictor((projection,))  # (B * K, dims)
        errors, accuracy = info_nce(prediction, target, self.temperature)
        # 1 for directions that are spread evenly, 0 once all images look alike.
        std = F.normalize(target.float(), dim=1).std(dim=0, correction=0).mean() * target.shape[1] ** 0.5
        return errors.detach()[:, None], dict(loss=errors.mean(), accuracy=accuracy, target_std=std)
