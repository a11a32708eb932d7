"""Hooks for the schedules of BootMAE: the teacher's decay, weights of branches, and how hard masks are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, cast

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bootmae_mm.registry import HOOKS
from bootmae_mm.validation import NonNegative, Share, require, validated

from ..schedules import feature_weight, piecewise_linear
from ..sharding import unwrapped


def current_epoch(runner: Runner) -> int:
    """Epoch of the current iteration, in any loop."""
    return runner.iter // len(runner.train_dataloader)


@torch.no_grad()
def ema_update(teacher: Sequence[Tensor], student: Sequence[Tensor], decay: float) -> None:
    """Update the teacher in place: teacher = decay * teacher + (1 - decay) * student.

    Args:
        teacher: Tensors of the teacher.
        student: Tensors of the student, in the same order.
        decay: Weight of the teacher's value, in [0, 1].
    """
    if teacher and isinstance(teacher[0], DTensor):  # sharded alike: every rank updates its shard
        teacher, student = ([cast(DTensor, value).to_local() for value in values] for values in (teacher, student))
    if not teacher:  # all of the student is frozen
        return
    # lerp is exact where both are equal, so that fixed position embeddings do not change.
    torch._foreach_lerp_(list(teacher), list(student), 1.0 - decay)


def moving_pairs(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters of teacher and student that :func:`ema_update` takes, in the same order.

    Fixed position embeddings are equal already. Buffers, such as those of a batch norm, do not follow.
    """
    teacher: list[Tensor] = []
    student: list[Tensor] = []
    for follower, leader in model.followers():
        own = dict(follower.named_parameters())
        moving = {name: parameter for name, parameter in leader.named_parameters() if parameter.requires_grad}
        teacher += [own[name] for name in moving]
        student += moving.values()
    return teacher, student


@HOOKS.register_module()
class BootMAEEMAHook(Hook):
    """Updates the momentum encoder after every step of the optimizer.

    Iterations that only accumulate gradients do not count, nor do steps that a loss scaler skips (except with a fused
    optimizer, which skips inside): the hook listens to the optimizer itself. At a fresh start the teacher becomes a
    copy of the initialized student; on resume it continues from the checkpoint. Without a momentum encoder, nothing
    happens.

    Args:
        decay: Weight of the teacher's own value as ``(epoch, value)`` milestones, linear in between and constant
            outside, set once per epoch. Default: 0.999 -> 0.9999 over epochs 0..100 (ViT-L of the paper; for ViT-B,
            then to 0.99999 at epoch 400).
        by_epoch: Whether positions are epochs; otherwise iterations, and the decay is set in each iteration.

    Raises:
        ConfigError: If the epochs do not increase.
    """

    priority = 'NORMAL'

    @validated
    def __init__(
        self,
        decay: Sequence[Annotated[tuple[float, Share], Field(strict=False)]] = ((0, 0.999), (100, 0.9999)),
        by_epoch: bool = True,
    ) -> None:
        self.decay = piecewise_linear(0, decay)  # checks the milestones
        self.milestones = decay
        self.by_epoch = by_epoch
        self._stepped = False

    def before_train(self, runner: Runner) -> None:
        """Initialize the teacher at a fresh start, and hook into the optimizer."""
        model = unwrapped(runner.model)
        self.active = getattr(model, 'has_momentum_teacher', False)
        if not self.active:
            runner.logger.info('There is no momentum encoder to update.')
            return
        if not runner._resume:
            model.reset_teacher()
            runner.logger.info('The teacher starts as a copy of the student.')
        end = runner.max_iters / len(runner.train_dataloader) if self.by_epoch else runner.max_iters
        if self.milestones[-1][0] > end:
            runner.logger.warning(
                f'the decay of the teacher rises until {self.milestones[-1][0]:g}, but the run ends at {end:g} '
                f'({"epochs" if self.by_epoch else "iterations"}): it never reaches {self.milestones[-1][1]:g}'
            )
        self._teacher, self._student = moving_pairs(model)
        runner.optim_wrapper.optimizer.register_step_post_hook(self._note_step)

    def _note_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        # Without gradients, MonitorHook has skipped the step.
        self._stepped = any(
            parameter.grad is not None for group in optimizer.param_groups for parameter in group['params']
        )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Set the decay of the schedule."""
        if self.active:
            position = current_epoch(runner) if self.by_epoch else runner.iter
            self.decay = piecewise_linear(position, self.milestones)
            runner.message_hub.update_scalar('train/ema_decay', self.decay)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Update the teacher if the optimizer has stepped."""
        if self.active and self._stepped:
            self._stepped = False
            ema_update(self._teacher, self._student, self.decay)


@HOOKS.register_module()
class FeatureWeightHook(Hook):
    """Ramps up the weight of a branch over the first part of the run; see :func:`feature_weight`.

    Args:
        branch: Name of the branch; another hook, by another name in ``default_hooks``, may do the same for another one.
        weight: Final value.
        ramp: Share of the run over which it rises.
        by_epoch: Whether it rises once per epoch; otherwise in every iteration.
    """

    priority = 'NORMAL'

    @validated
    def __init__(
        self, weight: NonNegative = 1.0, ramp: Share = 0.25, by_epoch: bool = True, branch: str = 'feature'
    ) -> None:
        self.branch = branch
        self.by_epoch = by_epoch
        self.weight = weight
        self.ramp = ramp

    def before_train(self, runner: Runner) -> None:
        """Check that the branch exists; without a feature branch, the default has nothing to do."""
        branches = getattr(unwrapped(runner.model), 'branches', [])
        known = self.branch in branches or self.branch == 'feature'
        require(known, f'FeatureWeightHook: branch {self.branch!r} must be one of the branches {branches}')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Set the weight in the model and log it."""
        model = unwrapped(runner.model)
        if self.branch not in getattr(model, 'branches', ()):
            return
        position, end = runner.iter, float(runner.max_iters)
        if self.by_epoch:
            position, end = current_epoch(runner), end / len(runner.train_dataloader)
        weight = feature_weight(position, end, self.weight, self.ramp)
        setattr(model, f'{self.branch}_weight', weight)
        runner.message_hub.update_scalar(f'train/{self.branch}_weight', weight)


@HOOKS.register_module()
class MaskingScheduleHook(Hook):
    """Raises the share of patches that :class:`PredictedErrorMasking` chooses, from easy masks to hard ones (HPM).

    Linear over the run: ``start + (end - start) * (position + 1) / length``.

    Args:
        start: Share before the first epoch.
        end: Share in the last epoch; 0.5 in HPM.
        by_epoch: Whether it rises once per epoch; otherwise in every iteration.
    """

    priority = 'NORMAL'

    @validated
    def __init__(self, start: Share = 0.0, end: Share = 0.5, by_epoch: bool = True) -> None:
        self.start, self.end = start, end
        self.by_epoch = by_epoch

    def before_train(self, runner: Runner) -> None:
        """Check that there is something to schedule."""
        masking = getattr(unwrapped(runner.model), 'masking', None)
        require(hasattr(masking, 'share'), 'MaskingScheduleHook needs a PredictedErrorMasking in model.masking')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Set the share in the model and log it."""
        masking = unwrapped(runner.model).masking
        position, length = runner.iter, float(runner.max_iters)
        if self.by_epoch:
            position, length = current_epoch(runner), length / len(runner.train_dataloader)
        masking.share = self.start + (self.end - self.start) * min(1.0, (position + 1) / length)
        runner.message_hub.update_scalar('train/masking_share', masking.share)
