"""Logging of a training step and the stop at a non-finite loss, without waiting for the device."""

from __future__ import annotations

import math
import resource

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.runner import Runner
from torch import Tensor
from torch.distributed.tensor import DTensor

from bootmae_mm.config import check_bound
from bootmae_mm.registry import HOOKS
from bootmae_mm.validation import ConfigError, Count, Natural, NonNegative, validated

from ..sharding import unwrapped

ENDLESS = 10**9  # mmengine's `end` of a scheduler without one
ZERO_ITERATIONS = 20
SKIPPED = 'skipped_steps'  # in the message hub, and so in checkpoints
# Loss scale of float16 below which no step will succeed.
MIN_SCALE = 2.0**-14


def check_schedules(runner: Runner) -> None:
    """Compare the ends of schedules with the end of the run, for configs that no tool has scaled to their length.

    Raises:
        ConfigError: If a schedule ends after the run, so that its last part would never be reached.
    """
    for scheduler in runner.param_schedulers or []:
        end = runner.max_epochs if scheduler.by_epoch else runner.max_iters
        by_epoch_in_iters = scheduler.by_epoch and not hasattr(runner.train_loop, 'run_epoch')
        if by_epoch_in_iters or end + 1 < scheduler.end < ENDLESS:  # + 1: mmengine gives an empty schedule one step
            raise ConfigError(
                f'{type(scheduler).__name__} of param_scheduler ends at {scheduler.end:g} '
                f'{"epochs" if scheduler.by_epoch else "iterations"}, but the run has {runner.max_epochs} epochs and '
                f'{runner.max_iters} iterations: set begin and end, and by_epoch=False in a run by iterations (the '
                'tools scale schedules to the run)'
            )
        lowest = getattr(scheduler, 'eta_min', None)
        if lowest is not None and lowest > max(scheduler.base_values):
            runner.logger.warning(
                f'{type(scheduler).__name__} ends at eta_min={lowest:.4g}, above its peak of '
                f'{max(scheduler.base_values):.4g}: {scheduler.param_name} will rise'
            )
        if scheduler.end < end and type(scheduler).__name__.startswith(('Cosine', 'Poly')):
            runner.logger.warning(
                f'{type(scheduler).__name__} ends at {scheduler.end:g} of {end:g}: the lr stays constant from there'
            )


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Global L2 norm of the gradients right before a step, a scalar on their device."""
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group['params']
        if parameter.grad is not None
    ]
    norm = torch.nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    # With a loss scaler, a fused optimizer divides by the scale within its step.
    scale = getattr(optimizer, 'grad_scale', None)
    return norm if scale is None else norm / scale.to(norm.device)


@HOOKS.register_module()
class MonitorHook(RuntimeInfoHook):
    """mmengine's ``RuntimeInfoHook`` that fetches values from the device once per log interval, and checks them.

    mmengine reads every logged value in every iteration, and each read waits for the device. This hook keeps the
    tensors and fetches those of a whole interval in one copy: before the logger needs them, before a checkpoint is
    written, and at the end. The averages in the log still cover every iteration and all processes (mmengine logs the
    first only).

    It also logs ``grad_norm``, the global L2 norm before the optimizer's step (with gradient clipping, mmengine's own
    value, and ``clipped_grad_norm``), and on a CPU ``memory``, the largest resident size of the main process in MB.

    If loss and gradient are exactly 0 in all of the first iterations, the run stops: nothing is learned.

    If a loss or gradient is not finite in any process, all stop, at the next fetch and always before a checkpoint is
    written, so that no checkpoint follows. (A loss scaler skips such steps by itself; the run stops once its scale is
    so small that no step will succeed.)

    Args:
        history: Iterations to keep of every logged value, for averages. mmengine keeps a million, copies all of them in
            every iteration (50 ms after half a million, measured on a CPU), and writes them into every checkpoint. The
            windows of a ``LogProcessor`` cannot be longer.
        max_skipped: Number of steps of the whole run, resumed parts included, that may be skipped because a gradient is
            not finite: weights, optimizer and teacher stay unchanged. One more stops the run. With skipping, each step
            waits for the device; 0, the default, stops at the first. Not with a loss scaler.
        min_target_std: ``feature_target_std``, or that of another branch, below which a warning tells that its target
            has collapsed (all patches look alike to the teacher). Usual values are 0.4 to 1.
    """

    @validated
    def __init__(self, history: Count = 1000, max_skipped: Natural = 0, min_target_std: NonNegative = 0.02) -> None:
        self.history = history
        self.max_skipped = max_skipped
        self.min_target_std = min_target_std

    def before_train(self, runner: Runner) -> None:
        """Find the interval of the logger, and hook into the optimizer."""
        super().before_train(runner)
        check_bound(runner.cfg)
        check_schedules(runner)
        self._next_warning = 0
        heads = getattr(unwrapped(runner.model), 'heads', {})
        self._teacher_stds = {f'{name}_target_std' for name, head in heads.items() if head.target.uses_teacher}
        self._all_zero = 0  # first iterations with a loss and gradient of 0; -1 after any other
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._grad_norm: Tensor | None = None
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        self._interval = min(intervals, default=1)
        scaled = hasattr(runner.optim_wrapper, 'loss_scaler')
        # With clipping, mmengine logs the norm before it as grad_norm.
        self._norm_name = 'clipped_grad_norm' if runner.optim_wrapper.clip_grad_kwargs else 'grad_norm'
        self._must_be_finite = ('loss',) if scaled else ('loss', self._norm_name)
        self._skips = self.max_skipped > 0 and not scaled
        self._runner = runner
        runner.optim_wrapper.optimizer.register_step_pre_hook(self._measure_gradients)

    def _measure_gradients(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._grad_norm = gradient_norm(optimizer)
        if self._skips and not torch.isfinite(self._grad_norm):
            self._skip(optimizer)

    def _skip(self, optimizer: torch.optim.Optimizer) -> None:
        """Skip a step: an optimizer ignores parameters without a gradient."""
        runner = self._runner
        bad = (
            name
            for name, parameter in runner.model.named_parameters()
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        )
        skipped = runner.message_hub.runtime_info.get(SKIPPED, 0) + 1
        what = f'gradient not finite at iteration {runner.iter + 1}, first of {next(bad, "all together")}'
        if skipped > self.max_skipped:
            raise FloatingPointError(f'{what}, after {skipped - 1} skipped steps; max_skipped={self.max_skipped}')
        runner.message_hub.update_info(SKIPPED, skipped)
        runner.logger.warning(f'{what}: step skipped, {skipped} of at most {self.max_skipped}')
        for group in optimizer.param_groups:
            for parameter in group['params']:
                parameter.grad = None

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Keep the values of the step; fetch all if the logger comes next."""
        values = (
            {}
            if outputs is None
            else {name: value.detach() if isinstance(value, Tensor) else value for name, value in outputs.items()}
        )
        if self._grad_norm is not None:
            values[self._norm_name] = self._grad_norm
            self._grad_norm = None
        self._pending.append((runner.iter + 1, values))
        if self.every_n_inner_iters(batch_idx, self._interval) or self.end_of_epoch(runner.train_dataloader, batch_idx):
            self._fetch(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the losses since the last fetch, of the first process only, which is the only one here."""
        for iteration, values in getattr(self, '_pending', []):
            numbers = {name: float(value) for name, value in values.items()}
            self._check(runner, iteration, numbers)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Drop schedules that monitor an unknown metric, which would end the run with a KeyError."""
        super().after_val_epoch(runner, metrics)
        for scheduler in list(runner.param_schedulers or []):
            name = getattr(scheduler, 'monitor', None)
            if metrics and name is not None and name not in metrics:
                runner.logger.warning(
                    f'{type(scheduler).__name__} monitors {name!r}, which is not a metric of this evaluator ('
                    f'{", ".join(map(repr, metrics))}): the schedule is ignored'
                )
                runner.param_schedulers.remove(scheduler)

    def after_train(self, runner: Runner) -> None:
        """Check the last losses."""
        self._fetch(runner)
        super().after_train(runner)

    def _fetch(self, runner: Runner) -> None:
        pending, self._pending = self._pending, []
        tensors = [
            value.float().reshape(()) for _, values in pending for value in values.values() if isinstance(value, Tensor)
        ]
        fetched = iter(self._mean_over_processes(torch.stack(tensors)).tolist() if tensors else [])
        for iteration, values in pending:
            numbers = {name: next(fetched) if isinstance(value, Tensor) else value for name, value in values.items()}
            self._check(runner, iteration, numbers)
            for name, value in numbers.items():
                if math.isfinite(value) or not self._skips:  # keep the averages finite
                    runner.message_hub.update_scalar(f'train/{name}', value)
        if scaled := getattr(runner.optim_wrapper, 'loss_scaler', None):
            scale = scaled.get_scale()
            if scale < MIN_SCALE:
                raise FloatingPointError(
                    f'the loss scale of float16 has fallen to {scale:.3g} at iteration {runner.iter + 1}: gradients '
                    'are never finite, and every step is skipped'
                )
        for buffer in runner.message_hub.log_scalars.values():
            buffer.max_length = self.history
        if not torch.cuda.is_available():
            runner.message_hub.update_scalar('train/memory', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    @staticmethod
    def _mean_over_processes(values: Tensor) -> Tensor:
        all_reduce(values, op='mean')
        return values

    def _check(self, runner: Runner, iteration: int, numbers: dict[str, float]) -> None:
        """Stop if a value is not finite or nothing is learned; warn of collapsed features."""
        if self._all_zero >= 0 and 'loss' in numbers:
            is_zero = numbers['loss'] == 0 and not numbers.get(self._norm_name, 0)
            self._all_zero = self._all_zero + 1 if is_zero else -1
            if self._all_zero >= min(ZERO_ITERATIONS, runner.max_iters):
                raise ConfigError(
                    f'loss and gradient were exactly 0 in all of the first {self._all_zero} iterations: nothing is '
                    'learned; is there a single class under softmax, or no label at all?'
                )
        stds = {name: value for name, value in numbers.items() if name in self._teacher_stds}
        name = min(stds, key=lambda name: stds[name], default='')
        if stds and stds[name] < self.min_target_std and iteration >= self._next_warning:
            self._next_warning = iteration + 10 * self._interval
            runner.logger.warning(
                f'{name} is {stds[name]:.3g} at iteration {iteration}, below {self.min_target_std}: all '
                'patches look alike to the teacher, its features have collapsed; reduce the learning rate, or increase '
                'the decay of the teacher'
            )
        if self._skips:  # every step was checked already
            return
        bad = [name for name in self._must_be_finite if not math.isfinite(numbers.get(name, 0.0))]
        if bad:
            values = ', '.join(f'{name} {number:.6g}' for name, number in numbers.items())
            last = runner.message_hub.runtime_info.get('last_ckpt') or 'none was written yet'
            raise FloatingPointError(
                f'{" and ".join(bad)} not finite at iteration {iteration}: {values}. Last good checkpoint: {last}'
            )
