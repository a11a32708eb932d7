"""What is logged of a training step, and the stop on a non-finite loss; both without waiting for the device."""

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
from bootmae_mm.values import integer, number

ENDLESS = 10**9  # mmengine's end of a scheduler that has none
ZERO_ITERATIONS = 20
SKIPPED = 'skipped_steps'  # in the message hub, and so in checkpoints
# Of a loss of float16: gradients that fit at no larger scale would not at a smaller one either.
LEAST_SCALE = 2.0**-14


def check_schedules(runner: Runner) -> None:
    """Compare the ends of schedules with that of the run, for runs whose config no tool has fitted to their length.

    Raises:
        ValueError: If a schedule does not end before the run does: its last part would never come.
    """
    for scheduler in runner.param_schedulers or []:
        end = runner.max_epochs if scheduler.by_epoch else runner.max_iters
        if scheduler.by_epoch and not hasattr(runner.train_loop, 'run_epoch'):
            raise ValueError(
                f'{type(scheduler).__name__} is by epoch, and a run by iterations has none: set by_epoch=False'
            )
        if end + 1 < scheduler.end < ENDLESS:  # of a schedule without length mmengine gets one step
            raise ValueError(
                f'{type(scheduler).__name__} of param_scheduler ends at {scheduler.end:g}, after the run, which has '
                f'{end:g} {"epochs" if scheduler.by_epoch else "iterations"}; the tools scale schedules to the run, '
                'elsewhere set begin and end'
            )
        lowest = getattr(scheduler, 'eta_min', None)
        if lowest is not None and lowest > max(scheduler.base_values):
            runner.logger.warning(
                f'{type(scheduler).__name__} ends at eta_min={lowest:.4g}, above its peak of '
                f'{max(scheduler.base_values):.4g}: {scheduler.param_name} will rise'
            )
        if scheduler.end < end and type(scheduler).__name__.startswith(('Cosine', 'Poly')):
            runner.logger.warning(
                f'{type(scheduler).__name__} ends at {scheduler.end:g} of {end:g}: the lr stays what it is from there'
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
    # With a loss scaler a fused optimizer divides by the scale inside its step.
    scale = getattr(optimizer, 'grad_scale', None)
    return norm if scale is None else norm / scale.to(norm.device)


@HOOKS.register_module()
class MonitorHook(RuntimeInfoHook):
    """mmengine's ``RuntimeInfoHook`` that fetches values from the device once a log interval, and checks them.

    mmengine reads every logged value in every iteration, each of which waits for the device. This hook keeps the
    tensors and fetches those of a whole interval in one copy, right before the logger needs them, before a checkpoint
    is written, and at the end. Every value of every iteration still enters the log's averages, and is the mean over
    all processes (mmengine logs those of the first).

    Also logged: ``grad_norm``, the global L2 norm before the optimizer's step (where gradients are clipped, mmengine's
    own, which waits for the device, and beside it ``clipped_grad_norm``), and on a CPU ``memory``, the largest resident
    size of the main process in MB.

    A loss and gradient of exactly 0 in all of the first iterations stops the run: nothing is learned.

    A loss or gradient that is not finite in any process stops all of them: at the next fetch, and always before a
    checkpoint is written, so that no checkpoint comes after one. (With a loss scaler, which skips such steps by
    itself, the run stops once the scale has fallen so far that no gradient will fit.)

    Args:
        history: Iterations that are kept of every logged value, for averages; mmengine keeps a million, copies all of
            them in every iteration (50 ms after half a million, measured on a CPU), and writes them into every
            checkpoint. Windows of a ``LogProcessor`` cannot be longer.
        max_skipped: So many steps of the whole run, resumed parts included, may be left out because a gradient is not
            finite: weights, optimizer and teacher stay as they are. One more stops the run. Each step then waits for
            the device; 0, the default, stops at the first. Not with a loss scaler, which skips by itself.
        min_target_std: A warning in the log when ``feature_target_std`` falls below it: all patches look alike to the
            teacher, a collapse. (0.4 to 1 is usual.)

    Raises:
        ValueError: If ``history`` is less than 1, or another number negative.
    """

    def __init__(self, history: int = 1000, max_skipped: int = 0, min_target_std: float = 0.02) -> None:
        self.history = integer(history, 'history', least=1)
        self.max_skipped = integer(max_skipped, 'max_skipped', least=0)
        self.min_target_std = number(min_target_std, 'min_target_std', least=0)

    def before_train(self, runner: Runner) -> None:
        """Find the logger's interval and listen to the optimizer."""
        super().before_train(runner)
        check_bound(runner.cfg)
        check_schedules(runner)
        self._next_warning = 0
        self._all_zero = 0  # iterations from the first on without any loss or gradient; -1: there was some
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._grad_norm: Tensor | None = None
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        self._interval = min(intervals, default=1)
        scaled = hasattr(runner.optim_wrapper, 'loss_scaler')
        # Where gradients are clipped, mmengine logs the norm before under this name.
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
        """Leave a step out: an optimizer passes over parameters without a gradient."""
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
        """Keep the step's values; fetch all that were kept if the logger comes next."""
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
        """Check the losses since the last fetch. Only the first process is here, so there is no mean to take."""
        for iteration, values in getattr(self, '_pending', []):
            numbers = {name: float(value) for name, value in values.items()}
            self._check(runner, iteration, numbers)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Leave out schedules that wait for a metric that there is not, which would end the run with a KeyError."""
        super().after_val_epoch(runner, metrics)
        for scheduler in list(runner.param_schedulers or []):
            name = getattr(scheduler, 'monitor', None)
            if metrics and name is not None and name not in metrics:
                runner.logger.warning(
                    f'{type(scheduler).__name__} monitors {name!r}, which is no metric of this evaluator; it has '
                    f'{", ".join(map(repr, metrics))}: the schedule is left out'
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
                if math.isfinite(value) or not self._skips:  # else the averages would not be, for a while
                    runner.message_hub.update_scalar(f'train/{name}', value)
        if scaled := getattr(runner.optim_wrapper, 'loss_scaler', None):
            scale = scaled.get_scale()
            if scale < LEAST_SCALE:
                raise FloatingPointError(
                    f'the loss scale of float16 has fallen to {scale:.3g} by iteration {runner.iter + 1}: gradients '
                    'are not finite in every step, and none is taken'
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
        """Stop if a number is not finite that must be, or nothing is learned; warn of a collapse."""
        if self._all_zero >= 0 and 'loss' in numbers:
            is_zero = numbers['loss'] == 0 and not numbers.get(self._norm_name, 0)
            self._all_zero = self._all_zero + 1 if is_zero else -1
            if self._all_zero >= min(ZERO_ITERATIONS, runner.max_iters):
                raise ValueError(
                    f'loss and gradient were exactly 0 in all of the first {self._all_zero} iterations: nothing is '
                    'learned; is there a single class under softmax, or no label at all?'
                )
        deviation = numbers.get('feature_target_std', math.inf)
        if deviation < self.min_target_std and iteration >= self._next_warning:
            self._next_warning = iteration + 10 * self._interval
            runner.logger.warning(
                f'feature_target_std is {deviation:.3g} at iteration {iteration}, below {self.min_target_std}: all '
                'patches look alike to the teacher, its features have collapsed; lower the learning rate, or raise '
                'the decay of the teacher'
            )
        if self._skips:  # steps are looked at one by one
            return
        bad = [name for name in self._must_be_finite if not math.isfinite(numbers.get(name, 0.0))]
        if bad:
            values = ', '.join(f'{name} {number:.6g}' for name, number in numbers.items())
            last = runner.message_hub.runtime_info.get('last_ckpt') or 'none was written yet'
            raise FloatingPointError(
                f'{" and ".join(bad)} not finite at iteration {iteration}: {values}. Last good checkpoint: {last}'
            )
