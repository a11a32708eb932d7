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

from bootmae_mm.registry import HOOKS


@HOOKS.register_module()
class MonitorHook(RuntimeInfoHook):
    """mmengine's ``RuntimeInfoHook`` that fetches values from the device once a log interval, and checks them.

    mmengine reads every logged value in every iteration, each of which waits for the device. This hook keeps the
    tensors and fetches those of a whole interval in one copy, right before the logger needs them, before a checkpoint
    is written, and at the end. Every value of every iteration still enters the log's averages, and is the mean over
    all processes (mmengine logs those of the first).

    Also logged: ``grad_norm``, the global L2 norm before the optimizer's step (nothing is clipped), and on a CPU
    ``memory``, the largest resident size of the main process in MB.

    A loss or gradient that is not finite in any process stops all of them: at the next fetch, and always before a
    checkpoint is written, so that no checkpoint comes after one. (With a loss scaler, gradients are its business.)

    Args:
        history: Iterations that are kept of every logged value, for averages; mmengine keeps a million, copies all of
            them in every iteration (50 ms after half a million, measured on a CPU), and writes them into every
            checkpoint. Windows of a ``LogProcessor`` cannot be longer.

    Raises:
        ValueError: If it is less than 1.
    """

    def __init__(self, history: int = 1000) -> None:
        if history < 1:
            raise ValueError(f'history must be at least 1, but is {history}')
        self.history = history

    def before_train(self, runner: Runner) -> None:
        """Find the logger's interval and listen to the optimizer."""
        super().before_train(runner)
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._grad_norm: Tensor | None = None
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        self._interval = min(intervals, default=1)
        scaled = hasattr(runner.optim_wrapper, 'loss_scaler')
        self._must_be_finite = ('loss',) if scaled else ('loss', 'grad_norm')
        runner.optim_wrapper.optimizer.register_step_pre_hook(self._measure_gradients)

    def _measure_gradients(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group['params']
            if parameter.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm

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
            values['grad_norm'] = self._grad_norm
            self._grad_norm = None
        self._pending.append((runner.iter + 1, values))
        if self.every_n_inner_iters(batch_idx, self._interval) or self.end_of_epoch(runner.train_dataloader, batch_idx):
            self._fetch(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the losses since the last fetch. Only the first process is here, so there is no mean to take."""
        for iteration, values in getattr(self, '_pending', []):
            numbers = {name: float(value) for name, value in values.items()}
            self._check(runner, iteration, numbers)

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
            for name, number in numbers.items():
                runner.message_hub.update_scalar(f'train/{name}', number)
        for buffer in runner.message_hub.log_scalars.values():
            buffer.max_length = self.history
        if not torch.cuda.is_available():
            runner.message_hub.update_scalar('train/memory', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    @staticmethod
    def _mean_over_processes(values: Tensor) -> Tensor:
        all_reduce(values, op='mean')
        return values

    def _check(self, runner: Runner, iteration: int, numbers: dict[str, float]) -> None:
        """Stop if a number is not finite that must be."""
        bad = [name for name in self._must_be_finite if not math.isfinite(numbers.get(name, 0.0))]
        if bad:
            values = ', '.join(f'{name} {number:.6g}' for name, number in numbers.items())
            last = runner.message_hub.runtime_info.get('last_ckpt') or 'none was written yet'
            raise FloatingPointError(
                f'{" and ".join(bad)} not finite at iteration {iteration}: {values}. Last good checkpoint: {last}'
            )
