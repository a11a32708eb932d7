"""A run that is told to end saves itself first."""

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
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from bootmae_mm.registry import HOOKS
from bootmae_mm.values import integer, number

from .checkpoint import CheckpointHook


class Interrupted(Exception):
    """A run was told to end, and has saved itself.

    Args:
        path: Of the checkpoint.
        status: That the process is to end with.
        left: Seconds of the grace time that are left to do so.
    """

    def __init__(self, path: str, status: int, left: float) -> None:
        super().__init__(f'interrupted; go on with --resume from {path}')
        self.status = status
        self.left = left


def heed_only_the_parent(worker_init_fn: Callable[[int], None] | None, worker: int) -> None:
    """Start of a loader's worker: SIGTERM of others than the main process is not for it.

    torchrun, and schedulers, send the signal to whole groups of processes. A worker that ended by it would take the
    main process along, in the middle of the checkpoint that it writes.

    Args:
        worker_init_fn: Of the loader; called too.
        worker: Number of the worker.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.set_wakeup_fd(-1)  # it would write into the main process's pipe
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for, args=(parent.pid,), daemon=True).start()
    if worker_init_fn is not None:
        worker_init_fn(worker)


def _wait_for(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # as torch's own handler does


@HOOKS.register_module()
class InterruptionHook(Hook):
    """On SIGTERM (a scheduler needs the machine) or SIGINT (Ctrl-C): a checkpoint, and an end with its own status.

    The checkpoint, ``interrupted_ITERATION.pth``, is written after the optimizer's next step, so that the run goes on
    exactly there; it is removed once the next regular one is written. Of several processes all must get the signal, or
    one of them, and all end at the same iteration. A validation is given up for it, and the run goes on after it;
    several processes, which need not have the same number of batches, end it first.

    Args:
        signals: Names of the signals.
        grace: Seconds from the signal to the end; after that the process ends as it is, with status 1 if no checkpoint
            was written. (torchrun allows 30 where the signal went to it, and kills then.)
        interval: Of several processes: seconds, about, between two looks whether another one got the signal; at least
            a step of the optimizer.
        status: The process ends with once it has saved itself; 75 is "temporary failure, try again" (EX_TEMPFAIL).

    Raises:
        ValueError: On an unknown signal or numbers that are not positive.
    """

    priority = 'LOWEST'

    def __init__(
        self,
        signals: Sequence[str] = ('SIGTERM', 'SIGINT'),
        grace: float = 120.0,
        interval: float = 1.0,
        status: int = 75,
    ) -> None:
        unknown = [name for name in signals if name not in signal.Signals.__members__]
        if unknown:
            raise ValueError(f'signals must be names such as SIGTERM, but there is {unknown}')
        self.signals = [signal.Signals[name] for name in signals]
        self.grace = number(grace, 'grace', above=0)
        self.interval = number(interval, 'interval', above=0)
        self.status = integer(status, 'status', 1, 125)
        self._asked: str | None = None
        self._saved: Path | None = None
        self._before: dict[signal.Signals, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Listen."""
        self._asked = self._saved = None
        self._process = os.getpid()
        self._runner = runner
        self._next_look = 0
        self._last_look: tuple[int, float] | None = None
        # Over the CPU: nothing waits for a GPU.
        self._group = None
        if get_world_size() > 1:
            timeout = runner.cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
            self._group = torch.distributed.new_group(backend='gloo', timeout=timedelta(seconds=timeout))
        if self.signals and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self.signals}
            self._listen()

    def _listen(self) -> None:
        """Start a thread that ends the process once the grace time is over.

        It hears of signals by a pipe, at once: :meth:`_ask` runs only once the main thread is back from what it waits
        for, such as a collective operation whose other processes are dead.
        """
        self._ended = threading.Event()
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._heard_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._watch = threading.Thread(target=self._end_in_time, args=(reading, self._ended), daemon=True)
        self._watch.start()

    def _end_in_time(self, reading: int, ended: threading.Event) -> None:
        with open(reading, 'rb', buffering=0) as pipe:
            while heard := pipe.read(1)[0]:
                if heard in self.signals and not ended.wait(self.grace):
                    self._give_up(signal.Signals(heard).name)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        # Workers of the loader inherit this.
        if os.getpid() != self._process:
            return
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C: at once
        if self._asked is None:
            self._asked = signal.Signals(number).name
            self._deadline = time.monotonic() + self.grace

    def _give_up(self, asked: str) -> None:
        what = f'saved {self._saved}, but did not end' if self._saved else 'no checkpoint was written'
        self._runner.logger.error(f'{asked}: {what} within {self.grace} s; ending now')
        os._exit(self.status if self._saved else 1)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Save and end if it is time."""
        done = runner.iter + 1
        # Gradients that are accumulated are not saved.
        if done % runner.optim_wrapper._accumulative_counts or done == runner.max_iters:
            return
        if self._agreed(done // runner.optim_wrapper._accumulative_counts):
            self._save(runner, done)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence | None = None
    ) -> None:
        """Give the validation up, if this is the only process."""
        if self._before and self._group is None and self._asked is not None:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # the averaged weights are in the model's place now
                    hook.after_val_epoch(runner)
            self._save_after(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Save and end if it is time, and the run not over. (Outside of training nothing listens.)"""
        if self._before and runner.iter < runner.max_iters and self._agreed():
            self._save_after(runner)

    def _save_after(self, runner: Runner) -> None:
        """Save after an iteration that is counted already."""
        if runner.iter % runner.optim_wrapper._accumulative_counts == 0 or runner.iter >= runner.max_iters:
            self._save(runner, runner.iter)

    def _left(self) -> float:
        # A process that was not asked itself ends with the others.
        return self.grace if self._asked is None else max(self._deadline - time.monotonic(), 1.0)

    def _save(self, runner: Runner, done: int) -> None:
        hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        folder = runner.work_dir if hook is None else hook.out_dir
        name = f'interrupted_{done}.pth'
        path = Path(folder, name)
        runner.logger.warning(f'{self._asked or "another process was interrupted"}: saving {path}')
        meta = dict(epoch=runner.epoch, iter=done)
        runner.save_checkpoint(folder, name, meta=meta, by_epoch=False)
        if is_main_process() and hook is not None:
            hook.finish_saving(runner, path, outdated=[])
        self._saved = path
        raise Interrupted(str(path), self.status, self._left())

    def _agreed(self, steps: int | None = None) -> bool:
        """Whether to end now, the same in all processes.

        Args:
            steps: Of the optimizer, after which all come here but do not always look; None to look.
        """
        if self._group is None:
            return self._asked is not None
        if steps is None:
            steps = self._last_look[0] if self._last_look else 0
        elif steps < self._next_look:
            return False
        now = time.monotonic()
        before, then = self._last_look or (steps, now - self.interval)
        self._last_look = steps, now
        # With the time of a step, so that all look again after the same one.
        news = torch.tensor([float(self._asked is not None), (now - then) / max(steps - before, 1)])
        torch.distributed.all_reduce(news, torch.distributed.ReduceOp.MAX, group=self._group)
        asked, seconds = news.tolist()
        self._next_look = steps + max(1, int(self.interval / seconds))
        return bool(asked)

    def after_train(self, runner: Runner) -> None:
        """Listen no more."""
        self.stop()

    def stop(self) -> None:
        """Listen no more: signals do what they did before, and nothing ends the process later.

        A Runner calls it when its training ends by an error, too; mmengine's hooks do not hear of that.
        """
        if not self._before:
            return
        self._ended.set()
        signal.set_wakeup_fd(self._heard_before)
        os.write(self._writing, b'\0')  # its thread ends; closing is not enough, workers of the loader have it open
        os.close(self._writing)
        for which, handler in self._before.items():
            signal.signal(which, handler)
        self._before = {}
