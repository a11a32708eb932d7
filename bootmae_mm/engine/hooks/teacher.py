"""Hooks that follow the schedules of BootMAE: the teacher's decay and the weight of the feature loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bootmae_mm.registry import HOOKS
from bootmae_mm.values import check_bool, number

from ..schedules import feature_weight, piecewise_linear
from ..sharding import unwrapped


def current_epoch(runner: Runner) -> int:
    """Epoch of the current iteration, for loops by epoch and by iteration alike."""
    return runner.iter // len(runner.train_dataloader)


@torch.no_grad()
def ema_update(teacher: Sequence[Tensor], student: Sequence[Tensor], decay: float) -> None:
    """Move every tensor of the teacher: teacher = decay * teacher + (1 - decay) * student, in place.

    Args:
        teacher: Tensors to move.
        student: Tensors to follow, in the same order.
        decay: Weight of the old value, in [0, 1].
    """
    if teacher and isinstance(teacher[0], DTensor):  # divided alike: every process moves its share
        teacher, student = ([cast(DTensor, value).to_local() for value in values] for values in (teacher, student))
    if not teacher:  # all of the student is frozen
        return
    # The form that is exact where both are equal, so that fixed position embeddings stay what they are.
    torch._foreach_lerp_(list(teacher), list(student), 1.0 - decay)


def moving_pairs(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """What :func:`ema_update` moves in a :class:`BootMAE`: parameters of the teacher, and of the student beside them.

    Fixed position embeddings are equal already; buffers there are none.
    """
    teacher = dict(model.teacher.named_parameters())
    student = {name: parameter for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    return [teacher[name] for name in student], list(student.values())


@HOOKS.register_module()
class BootMAEEMAHook(Hook):
    """Moves the momentum encoder after every step of the optimizer.

    Iterations that only accumulate gradients do not count, nor do steps that a loss scaler skips (except with a fused
    optimizer, which skips inside): the hook listens to the optimizer itself. At a fresh start the teacher becomes a
    copy of the student, after that was initialised or loaded; on resume it continues from the checkpoint. Does nothing
    where there is no momentum encoder.

    Args:
        decay: Weight of the teacher's own value as ``(epoch, value)`` milestones, linear between and constant
            outside, set once an epoch. Default: 0.999 -> 0.9999 over epochs 0..100 (ViT-L of the paper; ViT-B goes on
            to 0.99999 at epoch 400).
        by_epoch: Positions are epochs; False: iterations, and the decay is set in each of them.

    Raises:
        ValueError: If a decay is outside [0, 1] or the epochs do not rise.
    """

    priority = 'NORMAL'

    def __init__(
        self, decay: Sequence[tuple[float, float]] = ((0, 0.999), (100, 0.9999)), by_epoch: bool = True
    ) -> None:
        if not isinstance(decay, Sequence) or not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in decay):
            raise ValueError(f'decay must be a list of (epoch, value), but is {decay!r}')
        for epoch, value in decay:
            number(epoch, 'epoch of decay')
            number(value, 'value of decay', least=0, most=1)
        try:
            piecewise_linear(0, decay)  # checks the rest
        except ValueError as error:
            raise ValueError(f'decay: {error}') from error
        self.milestones = decay
        self.by_epoch = check_bool(by_epoch, 'by_epoch')
        self.decay = decay[0][1]
        self._stepped = False

    def before_train(self, runner: Runner) -> None:
        """Start or continue the teacher, and listen to the optimizer."""
        model = unwrapped(runner.model)
        self.active = getattr(model, 'has_momentum_teacher', False)
        if not self.active:
            runner.logger.info('There is no momentum encoder to move.')
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
        # No gradients: :class:`MonitorHook` has left the step out.
        self._stepped = any(
            parameter.grad is not None for group in optimizer.param_groups for parameter in group['params']
        )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Follow the schedule."""
        if self.active:
            position = current_epoch(runner) if self.by_epoch else runner.iter
            self.decay = piecewise_linear(position, self.milestones)
            runner.message_hub.update_scalar('train/ema_decay', self.decay)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Move the teacher if the optimizer has stepped."""
        if self.active and self._stepped:
            self._stepped = False
            ema_update(self._teacher, self._student, self.decay)


@HOOKS.register_module()
class FeatureWeightHook(Hook):
    """Ramps the weight of the feature loss up, over the first part of the run; see :func:`feature_weight`.

    Args:
        weight: Final value.
        ramp: Share of the run it takes to rise.
        by_epoch: It rises from epoch to epoch; False: in every iteration.
    """

    priority = 'NORMAL'

    def __init__(self, weight: float = 1.0, ramp: float = 0.25, by_epoch: bool = True) -> None:
        self.by_epoch = check_bool(by_epoch, 'by_epoch')
        self.weight = number(weight, 'weight', least=0)
        self.ramp = number(ramp, 'ramp', least=0, most=1)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Set the weight in the model and log it."""
        model = unwrapped(runner.model)
        if getattr(model, 'feature_head', None) is None:
            return
        position, end = runner.iter, float(runner.max_iters)
        if self.by_epoch:
            position, end = current_epoch(runner), end / len(runner.train_dataloader)
        model.feature_weight = feature_weight(position, end, self.weight, self.ramp)
        runner.message_hub.update_scalar('train/feature_weight', model.feature_weight)
