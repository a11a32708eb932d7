"""Masks that depend on what the teacher sees, drawn on the device."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from bootmae_mm.registry import MODELS
from bootmae_mm.validation import Share, require, validated

from .step import TeacherView


class DeviceMasking(BaseModule):
    """Base class: a subclass defines ``forward``.

    How many patches are masked, and every random choice, comes from the masks of the data loader, which should be
    random (``masking=dict(strategy='random')``): the order of the patches in them is the only randomness, so that runs
    resume exactly.
    """

    def forward(self, teacher: TeacherView, ids_keep: Tensor, ids_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Draw masks.

        Args:
            teacher: The teacher's view of the images.
            ids_keep: Of the data loader, (B * K, V).
            ids_mask: Of the data loader, (B * K, M).

        Returns:
            ``ids_keep`` (B * K, V) and ``ids_mask`` (B * K, M).
        """
        raise NotImplementedError

    def followers(self, model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:  # noqa: ARG002
        """Modules of this one that follow trained ones of the model by momentum, as pairs (follower, leader)."""
        return []


@MODELS.register_module()
class AttentionMasking(DeviceMasking):
    """Masks by the attention of the teacher's class token (AttMask, arXiv 2203.12719).

    All images are masked. (The authors mask half of them, chosen at random.)

    ``'high'`` masks the patches with the most attention, ``'low'`` those with the least. ``'hint'`` is ``'high'``, but
    some of the patches with the most attention stay visible; as many patches with less attention are masked instead, so
    that their number stays.

    Args:
        model: The model; :class:`BootMAE` fills it in.
        teacher: Its teacher; :class:`BootMAE` fills it in.
        strategy: ``'high'``, ``'hint'`` or ``'low'``.
        hint_share: Share of all patches, those with the most attention, among which ``'hint'`` chooses.
        shown_share: Share of these that stay visible; the authors have their masking ratio here, 0.3 on average.

    Raises:
        ConfigError: If the teacher has no class token.
    """

    @validated
    def __init__(
        self,
        model: nn.Module,  # noqa: ARG002
        teacher: nn.Module,
        strategy: Literal['high', 'hint', 'low'] = 'high',
        hint_share: Share = 0.1,
        shown_share: Share = 0.3,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        has_class_token = getattr(teacher, 'cls_token', None) is not None
        require(has_class_token, 'masking by attention needs with_cls_token=True in the backbone')
        self.strategy = strategy
        patches = teacher.grid_size[0] * teacher.grid_size[1]
        self.num_hinted = round(hint_share * patches)
        self.num_shown = round(shown_share * self.num_hinted) if strategy == 'hint' else 0

    @torch.no_grad()
    def forward(self, teacher: TeacherView, ids_keep: Tensor, ids_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Draw masks: (B * K, V), (B * K, M) -> (B * K, V), (B * K, M)."""
        kept, given = ids_keep.shape[1], torch.cat([ids_keep, ids_mask], dim=1)  # (B * K, L), a random order
        attention = teacher.class_attention().mean(1)  # (B, L), over heads
        attention = attention.repeat_interleave(len(given) // len(attention), 0)  # (B * K, L)
        # Patches in the order of visibility, the last are masked; equal attention falls as the loader ordered it.
        score = attention.gather(1, given) * (-1 if self.strategy == 'low' else 1)  # (B * K, L)
        order = given.gather(1, score.argsort(dim=1, stable=True))  # (B * K, L)
        if self.num_shown:
            fits = self.num_shown <= kept
            require(fits, f'masking.shown_share keeps {self.num_shown} patches visible, but only {kept} are kept')
            rank = given.argsort(dim=1)  # (B * K, L): place of a patch
            hinted = order[:, -self.num_hinted :]  # the most attention
            hinted = hinted.gather(1, rank.gather(1, hinted).argsort(dim=1))  # in the loader's order
            shown = hinted[:, : self.num_shown]  # to the front, where patches are kept
            order = torch.cat([shown, order[:, : -self.num_hinted], hinted[:, self.num_shown :]], dim=1)
        return order[:, :kept], order[:, kept:]


@MODELS.register_module()
class PredictedErrorMasking(DeviceMasking):
    """Masks the patches that a branch predicts to be hard, more and more of them (HPM, arXiv 2304.05919).

    The branch learns to predict the errors of another one (``head.target=dict(type='bootmae_mm.ErrorTarget')``). A copy
    of it that follows by momentum, as the teacher does, predicts the errors of all patches of the whole image;
    ``share`` of the masked patches are those with the largest. The rest is random. :class:`MaskingScheduleHook` raises
    ``share`` during the run, from easy to hard.

    Args:
        model: The model; :class:`BootMAE` fills it in.
        teacher: Its teacher; :class:`BootMAE` fills it in.
        branch: Name of the branch; its decoder must have ``context_block=None``.
        share: Share of the masked patches that are chosen by the prediction, if no hook sets it.

    Raises:
        ConfigError: If there is no such branch, it has feature injection, or the teacher is frozen.
    """

    @validated
    def __init__(
        self, model: nn.Module, teacher: nn.Module, branch: str = 'difficulty', share: Share = 0.5, init_cfg: Any = None
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        require(branch in model.branches, f'branch {branch!r} must be one of the branches {model.branches}')
        decoder, head = model.neck.decoders[branch], model.heads[branch]
        injects = decoder.context_block is not None
        require(not injects, f'masking by the prediction of {branch!r} needs neck.{branch}.context_block=None')
        moves = model.teacher_options is None
        require(moves, 'masking by predicted errors needs the momentum encoder, but teacher is a frozen one')
        gives_errors = head.target.dims == 1
        require(gives_errors, f'branch {branch!r} must predict one number per patch (ErrorTarget)')
        self.branch, self.share = branch, share
        self.decoder = copy.deepcopy(decoder).requires_grad_(False)
        self.projection = copy.deepcopy(head.projection).requires_grad_(False)
        rows, columns = teacher.grid_size
        self.register_buffer('all_ids', torch.arange(rows * columns)[None], persistent=False)  # (1, L)

    def followers(self, model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
        """The copies of decoder and head."""
        leaders = model.neck.decoders[self.branch], model.heads[self.branch].projection
        return list(zip((self.decoder, self.projection), leaders, strict=True))

    @torch.no_grad()
    def predicted_errors(self, teacher: TeacherView) -> Tensor:
        """Predictions for all patches of whole images, (B, L)."""
        latent = teacher.latent()  # (B, 1 + L, D)
        all_ids = self.all_ids.expand(len(latent), -1)  # (B, L)
        tokens = self.decoder(latent, None, all_ids[:, :0], ids_keep=all_ids)  # (B, L, width)
        return self.projection(tokens)[:, :, 0]

    @torch.no_grad()
    def forward(self, teacher: TeacherView, ids_keep: Tensor, ids_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Draw masks: (B * K, V), (B * K, M) -> (B * K, V), (B * K, M)."""
        kept, masked = ids_keep.shape[1], ids_mask.shape[1]
        chosen = int(self.share * masked)
        if not chosen:
            return ids_keep, ids_mask
        order = torch.cat([ids_keep, ids_mask], dim=1)  # (B * K, L), a random order
        errors = self.predicted_errors(teacher).float()  # (B, L)
        errors = errors.repeat_interleave(len(order) // len(errors), 0).gather(1, order)  # (B * K, L)
        hard = errors.argsort(dim=1, stable=True)[:, -chosen:]  # (B * K, chosen), places in the order
        is_hard = torch.zeros_like(errors).scatter_(1, hard, 1.0)  # (B * K, L)
        order = order.gather(1, is_hard.argsort(dim=1, stable=True))  # hard ones last, the others as they were
        return order[:, :kept], order[:, kept:]
