"""mmengine's Runner, with checkpoints that survive a crash, and fit for models that are divided among processes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner as MMEngineRunner
from mmengine.runner.base_loop import BaseLoop
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from mmengine.visualization import Visualizer
from mmengine.visualization.vis_backend import BaseVisBackend, TensorboardVisBackend
from torch import nn
from torch.utils.data import DataLoader

from bootmae_mm.checkpoints.reading import load_file
from bootmae_mm.checkpoints.trust import data_only
from bootmae_mm.data import ImageFolder
from bootmae_mm.data.samplers import SeededList

from .checks import check_agreement
from .hooks.interruption import InterruptionHook, heed_only_the_parent
from .loops import EpochLoop, IterLoop
from .recovery import write_durably
from .resuming import Hyperparameters, adapt_position, check_resumable, progress_meta
from .sharding import gathered_states, is_sharded, unwrapped

UNREADABLE = 'unreadable_images.txt'
REOPEN_AFTER = 60.0  # seconds
RECORDS = ('add_config', 'add_graph', 'add_image', 'add_scalar', 'add_scalars', 'close')


class Runner(MMEngineRunner):
    """mmengine's ``Runner``. What differs:

    - Of a checkpoint only data is read, wherever mmengine reads one, unless ``--trust-checkpoint`` was given.
    - A checkpoint is written under another name, synced, and renamed: its name never stands for half a file.
    - Loops are :class:`EpochLoop` and :class:`IterLoop`, which resume exactly and without loading what was seen.
    - Processes that come with different configs are refused.
    - Unreadable images of an ``ImageFolder`` are named in ``unreadable_images.txt`` in the work_dir.
    - Where scalars and pictures cannot be written (a full disk), an error is logged and training goes on.
    - The weights of a divided model stay as its wrapper initialised them (mmengine would send all tensors from the
      first process to the others, which divided ones refuse), and are gathered for checkpoints.
    """

    gathered: dict | None = None
    scheduler_cfg: Any = None
    optim_wrapper: Any  # mmengine's, configs until they are built
    param_schedulers: Any

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
        _pass_seeds_on(loader.dataset)
        loader.worker_init_fn = partial(heed_only_the_parent, loader.worker_init_fn)
        return loader

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """The loop that a config describes."""
        if isinstance(loop, dict) and loop.get('type') in (None, 'EpochBasedTrainLoop', 'IterBasedTrainLoop'):
            kind = EpochLoop if loop.get('by_epoch', loop.get('type') != 'IterBasedTrainLoop') else IterLoop
            options = {name: value for name, value in loop.items() if name not in ('by_epoch', 'type')}
            return kind(**options, runner=self, dataloader=self._train_dataloader)
        return super().build_train_loop(loop)

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """The schedulers that a config describes, which is kept for a resume with another one."""
        if any(isinstance(part, dict) for part in (scheduler if isinstance(scheduler, list) else [scheduler])):
            self.scheduler_cfg = copy.deepcopy(scheduler)
        for part in scheduler if isinstance(scheduler, list) else [scheduler]:
            if isinstance(part, dict) and 'end' in part:
                self._fit_short_schedule(part)
        return super().build_param_scheduler(scheduler)

    def _fit_short_schedule(self, scheduler: dict) -> None:
        """Fit a warm-up to a run of few iterations: their number is known only now."""
        length, end = len(self.train_dataloader), self.max_iters
        if scheduler.get('convert_to_iter_based'):
            # At least an iteration.
            first = min(int(scheduler.get('begin', 0) * length), end - 1)
            scheduler['begin'] = min(scheduler.get('begin', 0), first / length)
            scheduler['end'] = max(scheduler['end'], (first + 1) / length)
        elif not scheduler.get('by_epoch', True) and hasattr(self.train_loop, 'run_epoch'):
            if scheduler['end'] > end:
                self.logger.warning(
                    f'{scheduler["type"]} of {scheduler["end"]} iterations is shortened to the {end} of the run'
                )
            scheduler['end'] = min(scheduler['end'], end)
            scheduler['begin'] = min(scheduler.get('begin', 0), scheduler['end'] - 1)
        unit = length if scheduler.get('convert_to_iter_based') else 1
        if int(scheduler['end'] * unit) - int(scheduler.get('begin', 0) * unit) < 2:
            # mmengine multiplies by the factor in the first step, and takes it back in the last: the same one here.
            for key in {'LinearLR': ('start_factor',), 'ConstantLR': ('factor',)}.get(scheduler['type'], ()):
                scheduler[key] = scheduler.get('end_factor', 1.0)

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """mmengine's, but the lr at the end of a schedule (``eta_min_ratio``) stays what it is, as the authors'."""
        before = [group['lr'] for group in optim_wrapper.param_groups]
        super().scale_lr(optim_wrapper, auto_scale_lr)
        ratio = optim_wrapper.param_groups[0]['lr'] / before[0]
        schedulers = self.param_schedulers
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            if ratio != 1 and isinstance(scheduler, dict) and scheduler.get('eta_min_ratio') is not None:
                scheduler['eta_min_ratio'] = min(1.0, scheduler['eta_min_ratio'] / ratio)

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume; what a config may change then (length, lr, batch, processes) is as the config says.

        Raises:
            ValueError: If the config has changed what cannot.
        """
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)  # built already, except without train()
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        wanted = Hyperparameters(self, self.scheduler_cfg if self.param_schedulers else None)
        super().resume(filename, *args, **kwargs)
        adapt_position(self, self.resumed_meta)
        wanted.apply(self, self.resumed_schedulers)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict:
        """Load, as data only; without the config that MMCV's old runners noted, which mmengine would run on resume."""
        if str(filename).endswith('.safetensors'):  # which mmengine cannot read
            checkpoint = load_file(filename)
            self.logger.info(f'Load checkpoint from {filename}')
            _load_checkpoint_to_model(unwrapped(self.model), checkpoint, kwargs.get('strict', False))
            return checkpoint
        with data_only():
            checkpoint = super().load_checkpoint(filename, *args, **kwargs)
        checkpoint.get('meta', {}).pop('config', None)
        if self._resume:
            check_resumable(self, checkpoint)
            self.resumed_meta = checkpoint['meta']
            self.resumed_schedulers = len(checkpoint.get('param_schedulers') or [])
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
        kwargs['meta'] = {**(kwargs.get('meta') or {}), **progress_meta(self)}
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


def _pass_seeds_on(dataset: Any) -> None:
    """Let wrappers that look indices up in a list (ClassBalancedDataset) keep the seeds of a SeededSampler."""
    if isinstance(getattr(dataset, 'repeat_indices', None), list):
        dataset.repeat_indices = SeededList(dataset.repeat_indices)
    for inner in (getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())):
        if inner is not None:
            _pass_seeds_on(inner)


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
