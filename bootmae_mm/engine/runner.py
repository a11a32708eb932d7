"""mmengine's Runner, with checkpoints that survive a crash, and fit for models that are divided among processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner as MMEngineRunner
from mmengine.runner.base_loop import BaseLoop
from mmengine.visualization import Visualizer
from mmengine.visualization.vis_backend import BaseVisBackend, TensorboardVisBackend
from torch import nn
from torch.utils.data import DataLoader

from bootmae_mm.arguments import data_only
from bootmae_mm.data import ImageFolder

from .checks import check_agreement
from .hooks.interruption import InterruptionHook, heed_only_the_parent
from .loops import EpochLoop
from .recovery import write_durably
from .sharding import gathered_states, is_sharded

UNREADABLE = 'unreadable_images.txt'
REOPEN_AFTER = 60.0  # seconds
RECORDS = ('add_config', 'add_graph', 'add_image', 'add_scalar', 'add_scalars', 'close')


class Runner(MMEngineRunner):
    """mmengine's ``Runner``. What differs:

    - Of a checkpoint only data is read, wherever mmengine reads one, unless ``--trust-checkpoint`` was given.
    - A checkpoint is written under another name, synced, and renamed: its name never stands for half a file.
    - Loops by epoch are :class:`EpochLoop`, which resumes in the middle of an epoch.
    - Processes that come with different configs are refused.
    - Unreadable images of an ``ImageFolder`` are named in ``unreadable_images.txt`` in the work_dir.
    - Where scalars and pictures cannot be written (a full disk), an error is logged and training goes on.
    - The weights of a divided model stay as its wrapper initialised them (mmengine would send all tensors from the
      first process to the others, which divided ones refuse), and are gathered for checkpoints.
    """

    gathered: dict | None = None

    def setup_env(self, env_cfg: dict) -> None:
        """Processes meet here; they must have come with the same config.

        Raises:
            ValueError: If one has another.
        """
        super().setup_env(env_cfg)
        check_agreement(self.cfg.pretty_text, 'a config')

    def _init_model_weights(self) -> None:
        if not is_sharded(self.model):
            with data_only():  # of init_cfg=dict(type='Pretrained')
                super()._init_model_weights()

    def train(self) -> nn.Module:
        """Train; however it ends, the signals of the process are left as they were."""
        try:
            return super().train()
        finally:
            for hook in self.hooks:
                if isinstance(hook, InterruptionHook):
                    hook.stop()

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """The visualizer that a config describes; what it cannot write does not end the run."""
        built = super().build_visualizer(visualizer)
        for backend in built._vis_backends.values():
            # Visualizers live as long as the process: this one may be an earlier Runner's.
            for name in set(RECORDS) - set(vars(backend)):
                setattr(backend, name, _forgiving(backend, getattr(backend, name)))
        return built

    def build_dataloader(self, dataloader: DataLoader | dict, *args: Any, **kwargs: Any) -> DataLoader:
        """The loader that a config describes; its folders of images name unreadable ones in the work_dir.

        Not by the config: paths longer than a line cost mmengine seconds each time it formats it.
        """
        loader = super().build_dataloader(dataloader, *args, **kwargs)
        _name_unreadable(loader.dataset, Path(self.work_dir, UNREADABLE))
        loader.worker_init_fn = partial(heed_only_the_parent, loader.worker_init_fn)
        return loader

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """The loop that a config describes."""
        if isinstance(loop, dict) and loop.get('by_epoch') and 'type' not in loop:
            options = {name: value for name, value in loop.items() if name != 'by_epoch'}
            return EpochLoop(**options, runner=self, dataloader=self._train_dataloader)
        return super().build_train_loop(loop)

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict:
        """Load, as data only; without the config that MMCV's old runners noted, which mmengine would run on resume."""
        with data_only():
            checkpoint = super().load_checkpoint(*args, **kwargs)
        checkpoint.get('meta', {}).pop('config', None)
        return checkpoint

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint; all processes must call.

        Raises:
            Exception: In all processes, what the first raises: OSError if it cannot write; nothing is left of it then.
        """
        self.gathered = gathered_states(self) if is_sharded(self.model) else None
        own: Exception | None = None
        failure: list[Exception | None] = [None]
        try:
            if is_main_process():
                self._write(str(out_dir), filename, *args, **kwargs)
        except Exception as error:  # noqa: BLE001  it is raised below
            own = error
            failure[0] = error if isinstance(error, (OSError, FloatingPointError)) else RuntimeError(repr(error))
        finally:
            self.gathered = None
        # All must know: what they do next has to be the same.
        broadcast_object_list(failure)
        if own is not None:
            raise own  # with what led to it: the death of a worker, for one, may surface anywhere
        if failure[0] is not None:
            raise failure[0]

    def _write(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        if '://' in out_dir:
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        part = Path(out_dir, f'.{filename}.part')
        try:
            super().save_checkpoint(out_dir, part.name, *args, **kwargs)
            write_durably(part, Path(out_dir, filename))
        finally:
            part.unlink(missing_ok=True)


def _name_unreadable(dataset: Any, file: Path) -> None:
    """Tell every folder of images, those in other datasets too, where to name what cannot be read."""
    if isinstance(dataset, ImageFolder):
        dataset.unreadable_file = dataset.unreadable_file or str(file)
    for inner in (getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())):
        if inner is not None:
            _name_unreadable(inner, file)


def _forgiving(backend: BaseVisBackend, method: Callable) -> Callable:
    """A method of a backend that logs an error where the file system refuses."""

    @wraps(method)
    def forgiving(*args: Any, **kwargs: Any) -> None:
        if time.monotonic() < vars(backend).get('silent_until', 0.0):
            return
        try:
            method(*args, **kwargs)
        except OSError as error:
            print_log(f'{type(backend).__name__} could not write, training goes on: {error}', 'current', level=40)
            if isinstance(backend, TensorboardVisBackend):
                # Its writer has ended for good. Another one makes another file, so not with each line of the log.
                backend._env_initialized = False
                vars(backend)['silent_until'] = time.monotonic() + REOPEN_AFTER

    return forgiving
