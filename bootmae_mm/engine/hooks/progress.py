"""A progress bar of the run on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from bootmae_mm.progress import is_terminal, make_progress
from bootmae_mm.registry import HOOKS


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows share, time left, loss and speed of the run in one line, if the output is a terminal.

    Log lines of single iterations then go to the log file only; all others appear above the bar. Elsewhere (a file, a
    notebook, other processes than the first) nothing changes.

    Args:
        enabled: False for log lines on terminals too.
    """

    priority = 'LOWEST'

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._progress: Any = None
        self._streams: list[tuple[logging.StreamHandler, Any]] = []

    def before_train(self, runner: Runner) -> None:
        """Start the bar where the run starts or resumes."""
        if not (self.enabled and is_main_process() and is_terminal(sys.stdout)):
            return
        self._progress = make_progress()
        self._progress.start()  # from here, sys.stdout writes above the bar
        self._task = self._progress.add_task('Training', total=runner.max_iters, completed=runner.iter, text='')
        for handler in runner.logger.handlers:
            if type(handler) is logging.StreamHandler:
                self._streams.append((handler, handler.stream))
                handler.setStream(sys.stdout)
                handler.addFilter(_is_no_iteration)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Advance the bar; the loss is the one that the log shows, so that no step waits for the device."""
        if self._progress is None:
            return
        loss = runner.message_hub.log_scalars.get('train/loss')
        every = max(1, runner.max_iters // 1000)
        text = None
        if loss is not None and (runner.iter + 1) % every == 0 and len(loss.data[0]):
            epoch = f'epoch {runner.epoch + 1}/{runner.max_epochs}  ' if hasattr(runner.train_loop, 'run_epoch') else ''
            text = f'{epoch}loss {loss.current():.4f}'
        options = {} if text is None else {'text': text}
        self._progress.update(self._task, completed=runner.iter + 1, **options)

    def after_train(self, runner: Runner) -> None:
        """Remove the bar."""
        self.stop()

    def stop(self) -> None:
        """Remove the bar, also after an error, and restore the streams."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        for handler, stream in self._streams:
            handler.setStream(stream)
            handler.removeFilter(_is_no_iteration)
        self._streams.clear()


def _is_no_iteration(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(('Epoch(train)', 'Iter(train)'))
