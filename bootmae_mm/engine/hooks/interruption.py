"""Save a checkpoint and exit when the run is told to end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from pydantic import Field

from bootmae_mm.registry import HOOKS
from bootmae_mm.validation import Count, Positive, validated

from .checkpoint import CheckpointHook


class Interrupted(Exception):
    """A run was told to end, and has saved a checkpoint.

    Args:
        path: Path of the checkpoint.
        status: Exit status.
        left: Seconds left of the grace time.
    """

    def __init__(self, path: str, status: int, left: float) -> None:
        super().__init__(f'interrupted; resume with --resume from {path}')
        self.status = status
        self.left = left


def ignore_foreign_sigterm(worker_init_fn: Callable[[int], None] | None, worker: int) -> None:
    """Start of a loader's worker: ignore SIGTERM unless the main process sent it.

    torchrun and schedulers send the signal to whole process groups. A worker that exits would kill the main process
    while it writes its checkpoint.

    Args:
        worker_init_fn: The loader's own function, called too.
        worker: Number of the worker.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.set_wakeup_fd(-1)  # inherited; it would write into the main process's pipe
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_for, args=(parent.pid,), daemon=True).start()
    if worker_init_fn is not None:
        worker_init_fn(worker)


def _exit_for(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # as torch's own handler does


@HOOKS.register_module()
class InterruptionHook(Hook):
    """On SIGTERM (from a scheduler) or SIGINT (Ctrl-C): save a checkpoint and exit with a status of its own.

    ``interrupted_ITERATION.pth`` is written after the optimizer's next step, so that the run resumes exactly there; the
    next regular checkpoint removes it. With several processes it is enough that one gets the signal: all end at the
    same iteration. A single process abandons a validation for it; several processes finish it first.

    Args:
        signals: Names of the signals.
        grace: Seconds from the signal until the process exits anyway, with status 1 if no checkpoint was written.
            (torchrun allows 30 seconds if the signal was sent to it.)
        interval: With several processes, optimizer steps between checks whether another rank received the signal.
        status: Exit status after saving; 75 means "temporary failure, try again" (EX_TEMPFAIL).
    """

    priority = 'LOWEST'

    @validated
    def __init__(
        self,
        signals: Sequence[Literal['SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGUSR2', 'SIGHUP']] = ('SIGTERM', 'SIGINT'),
        grace: Positive = 120.0,
        interval: Count = 1,
        status: Annotated[int, Field(ge=1, le=125)] = 75,
    ) -> None:
        self.signals = [signal.Signals[name] for name in signals]
        self.grace = grace
        self.interval = interval
        self.status = status
        self._asked: str | None = None
        self._saved: Path | None = None
        self._handlers: dict[signal.Signals, Any] = {}  # those before training

    def before_train(self, runner: Runner) -> None:
        """Listen to the signals."""
        self._asked = self._saved = None
        self._process = os.getpid()
        self._runner = runner
        self._group = None
        if get_world_size() > 1:  # over the CPU, so that nothing waits for a GPU
            timeout = runner.cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
            self._group = torch.distributed.new_group(backend='gloo', timeout=timedelta(seconds=timeout))
        if self.signals and threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._ask) for number in self.signals}
            # Python runs handlers only when the main thread returns from what it waits for, such as a collective whose
            # other ranks are dead. The pipe tells a thread at once, which ends the process after the grace time.
            self._ended = threading.Event()
            reading, self._writing = os.pipe()
            os.set_blocking(self._writing, False)
            self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
            self._watch = threading.Thread(target=self._exit_in_time, args=(reading, self._ended), daemon=True)
            self._watch.start()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # workers of the loader inherit this handler
            return
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C: at once
        if self._asked is None:
            self._asked = signal.Signals(number).name
            self._deadline = time.monotonic() + self.grace

    def _exit_in_time(self, reading: int, ended: threading.Event) -> None:
        with open(reading, 'rb', buffering=0) as pipe:
            while heard := pipe.read(1)[0]:
                if heard in self.signals and not ended.wait(self.grace):
                    what = f'saved {self._saved}, but did not end' if self._saved else 'no checkpoint was written'
                    self._runner.logger.error(
                        f'{signal.Signals(heard).name}: {what} within {self.grace:g} s; ending now'
                    )
                    os._exit(self.status if self._saved else 1)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Save and end if asked."""
        done, accumulated = runner.iter + 1, runner.optim_wrapper._accumulative_counts
        # Accumulated gradients are not saved, so only after an optimizer step.
        if done % accumulated or done == runner.max_iters or (self._group and done // accumulated % self.interval):
            return
        if self._agreed():
            self._save(runner, done)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence | None = None
    ) -> None:
        """Abandon the validation if asked. Several processes may have different numbers of batches, and finish it."""
        if self._handlers and self._group is None and self._asked is not None:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # the averaged weights are in the model now
                    hook.after_val_epoch(runner)
            self._save_counted(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Save and end if asked, unless the run is over."""
        if self._handlers and runner.iter < runner.max_iters and self._agreed():
            self._save_counted(runner)

    def _save_counted(self, runner: Runner) -> None:
        """Save after an iteration that the runner has counted already."""
        if runner.iter % runner.optim_wrapper._accumulative_counts == 0 or runner.iter >= runner.max_iters:
            self._save(runner, runner.iter)

    def _agreed(self) -> bool:
        """Whether any rank was asked to end, the same in all ranks; all of them must call."""
        if self._group is None:
            return self._asked is not None
        asked = torch.tensor([float(self._asked is not None)])
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(asked)

    def _save(self, runner: Runner, done: int) -> None:
        hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        path = Path(runner.work_dir if hook is None else hook.out_dir, f'interrupted_{done}.pth')
        runner.logger.warning(f'{self._asked or "another process was interrupted"}: saving {path}')
        meta = dict(epoch=runner.epoch, iter=done)
        runner.save_checkpoint(str(path.parent), path.name, meta=meta, by_epoch=False)
        if is_main_process() and hook is not None:
            hook.finish_saving(runner, path, outdated=[])
        self._saved = path
        left = self.grace if self._asked is None else max(self._deadline - time.monotonic(), 1.0)
        raise Interrupted(str(path), self.status, left)

    def after_train(self, runner: Runner) -> None:
        """Stop listening."""
        self.stop()

    def stop(self) -> None:
        """Restore the signal handlers. The Runner calls it after errors too, which mmengine's hooks are not told of."""
        if not self._handlers:
            return
        self._ended.set()
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._writing, b'\0')  # ends the thread; closing is not enough, as workers have the pipe open
        os.close(self._writing)
        for which, handler in self._handlers.items():
            signal.signal(which, handler)
        self._handlers = {}
