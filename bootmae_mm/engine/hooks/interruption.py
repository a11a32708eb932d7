"""A run that is told to end saves itself first."""

from __future__ import annotations

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
from mmengine.hooks import Hook
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
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_the_parent, daemon=True).start()
    if worker_init_fn is not None:
        worker_init_fn(worker)


def _wait_for_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # as torch's own handler does


@HOOKS.register_module()
class InterruptionHook(Hook):
    """On SIGTERM (a scheduler needs the machine) or SIGINT (Ctrl-C): a checkpoint, and an end with its own status.

    The checkpoint, ``interrupted_ITERATION.pth``, is written after the optimizer's next step, so that the run goes on
    exactly there; it is removed once the next regular one is written. Of several processes all must get the signal, or
    one of them, and all end at the same iteration.

    Args:
        signals: Names of the signals.
        grace: Seconds from the signal to the end; after that the process ends as it is, with status 1 if no checkpoint
            was written.
        interval: Of several processes: steps of the optimizer between two looks whether another one got the signal.
        status: The process ends with once it has saved itself; 75 is "temporary failure, try again" (EX_TEMPFAIL).

    Raises:
        ValueError: On an unknown signal or numbers that are not positive.
    """

    priority = 'LOWEST'

    def __init__(
        self,
        signals: Sequence[str] = ('SIGTERM', 'SIGINT'),
        grace: float = 120.0,
        interval: int = 10,
        status: int = 75,
    ) -> None:
        unknown = [name for name in signals if name not in signal.Signals.__members__]
        if unknown:
            raise ValueError(f'signals must be names such as SIGTERM, but there is {unknown}')
        self.signals = [signal.Signals[name] for name in signals]
        self.grace = number(grace, 'grace', above=0)
        self.interval = integer(interval, 'interval', least=1)
        self.status = integer(status, 'status', 1, 125)
        self._asked: str | None = None
        self._saved: Path | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._watch = threading.Timer(grace, self._give_up)

    def before_train(self, runner: Runner) -> None:
        """Listen."""
        self._asked = self._saved = None
        self._process = os.getpid()
        self._runner = runner
        self._watch = threading.Timer(self.grace, self._give_up)
        self._watch.daemon = True
        # Over the CPU: nothing waits for a GPU.
        self._group = None
        if get_world_size() > 1:
            timeout = runner.cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
            self._group = torch.distributed.new_group(backend='gloo', timeout=timedelta(seconds=timeout))
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self.signals}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        # Workers of the loader inherit this.
        if os.getpid() != self._process:
            return
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C: at once
        if self._asked is None:
            self._asked = signal.Signals(number).name
            self._deadline = time.monotonic() + self.grace
            self._watch.start()

    def _give_up(self) -> None:
        what = f'saved {self._saved}, but did not end' if self._saved else 'no checkpoint was written'
        self._runner.logger.error(f'{self._asked}: {what} within {self.grace} s; ending now')
        os._exit(self.status if self._saved else 1)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Save and end if it is time."""
        done = runner.iter + 1
        # Gradients that are accumulated are not saved.
        if done % runner.optim_wrapper._accumulative_counts or done == runner.max_iters:
            return
        if not self._agreed(done // runner.optim_wrapper._accumulative_counts):
            return
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
        # A process that was not asked itself ends with the others.
        left = self.grace if self._asked is None else max(self._deadline - time.monotonic(), 1.0)
        raise Interrupted(str(path), self.status, left)

    def _agreed(self, steps: int) -> bool:
        """Whether to end now, the same in all processes."""
        if self._group is None:
            return self._asked is not None
        if steps % self.interval:
            return False
        asked = torch.tensor(float(self._asked is not None))
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(asked)

    def after_train(self, runner: Runner) -> None:
        """Listen no more."""
        self.stop()

    def stop(self) -> None:
        """Listen no more: signals do what they did before, and nothing ends the process later.

        A Runner calls it when its training ends by an error, too; mmengine's hooks do not hear of that.
        """
        self._watch.cancel()
        for which, handler in self._before.items():
            signal.signal(which, handler)
        self._before = {}
