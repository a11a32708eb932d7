"""mmengine's Runner with atomic checkpoints, exact resume and FSDP support."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner as MMEngineRunner
from mmengine.runner.base_loop import BaseLoop
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from bootmae_mm.checkpoints.reading import load_file
from bootmae_mm.checkpoints.trust import data_only
from bootmae_mm.checkpoints.writing import replace_atomically
from bootmae_mm.data import UnlabeledImages
from bootmae_mm.data.samplers import SeededList

from .checks import check_agreement
from .hooks.interruption import InterruptionHook, ignore_foreign_sigterm
from .hooks.progress import ProgressHook
from .logs import set_up
from .loops import EpochLoop, IterLoop
from .resuming import Hyperparameters, adapt_position, check_resumable, progress_meta
from .sharding import gathered_states, is_sharded, unwrapped

UNREADABLE = 'unreadable_images.txt'


class Runner(MMEngineRunner):
    """mmengine's ``Runner`` with these differences.

    - Checkpoints are read as data only, unless ``--trust-checkpoint`` is given.
    - Checkpoints are written atomically: under a temporary name, synced, and renamed.
    - The loops are :class:`EpochLoop` and :class:`IterLoop`, which resume exactly.
    - Processes with different configs are refused.
    - The console shows less than the log file (:mod:`bootmae_mm.engine.logs`).
    - Unreadable images are listed in ``unreadable_images.txt`` in the work_dir.
    - The weights of a sharded model are initialized by its wrapper (mmengine would broadcast them, which sharded
      tensors do not support), and gathered for checkpoints.
    """

    gathered: dict | None = None
    scheduler_cfg: Any = None
    optim_wrapper: Any  # mmengine's; a config until it is built
    param_schedulers: Any

    def setup_env(self, env_cfg: dict) -> None:
        """Set up the process group, and compare the configs of all processes.

        Raises:
            ConfigError: If a process has another config.
        """
        super().setup_env(env_cfg)
        check_agreement(self.cfg.pretty_text, 'a config')

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger; the console shows less than the log file."""
        logger = super().build_logger(*args, **kwargs)
        set_up(logger)
        return logger

    def _init_model_weights(self) -> None:
        if not is_sharded(self.model):
            with data_only():  # for init_cfg=dict(type='Pretrained')
                super()._init_model_weights()

    def train(self) -> nn.Module:
        """Train; in any case the workers end and the signal handlers of the process are restored."""
        try:
            return super().train()
        finally:
            for hook in self.hooks:
                if isinstance(hook, (InterruptionHook, ProgressHook)):
                    hook.stop()
            self._end_workers()

    def val(self) -> dict:
        """Evaluate on the validation data; the workers end in any case."""
        try:
            return super().val()
        finally:
            self._end_workers()

    def test(self) -> dict:
        """Evaluate on the test data; the workers end in any case."""
        try:
            return super().test()
        finally:
            self._end_workers()

    def _end_workers(self) -> None:
        """End persistent workers; those that the garbage collector ends are waited for, five seconds each."""
        for loop in (self._train_loop, self._val_loop, self._test_loop):
            loader = getattr(loop, 'dataloader', None)
            if isinstance(loader, DataLoader) and isinstance(loader._iterator, _MultiProcessingDataLoaderIter):
                loader._iterator._shutdown_workers()  # a traceback may hold it, so that it would not be deleted here
                loader._iterator = None

    def build_dataloader(self, dataloader: DataLoader | dict, *args: Any, **kwargs: Any) -> DataLoader:
        """Build a loader whose image folders list unreadable images in the work_dir.

        (Not set in the config: mmengine takes seconds to format one with long paths.)
        """
        loader = super().build_dataloader(dataloader, *args, **kwargs)
        _name_unreadable(loader.dataset, Path(self.work_dir, UNREADABLE))
        _pass_seeds_on(loader.dataset)
        loader.worker_init_fn = partial(ignore_foreign_sigterm, loader.worker_init_fn)
        return loader

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build a loop, this project's by default."""
        if isinstance(loop, dict) and loop.get('type') in (None, 'EpochBasedTrainLoop', 'IterBasedTrainLoop'):
            kind = EpochLoop if loop.get('by_epoch', loop.get('type') != 'IterBasedTrainLoop') else IterLoop
            options = {name: value for name, value in loop.items() if name not in ('by_epoch', 'type')}
            return kind(**options, runner=self, dataloader=self._train_dataloader)
        return super().build_train_loop(loop)

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Build schedulers, and keep their config to resume with another one."""
        if any(isinstance(part, dict) for part in (scheduler if isinstance(scheduler, list) else [scheduler])):
            self.scheduler_cfg = copy.deepcopy(scheduler)
        for part in scheduler if isinstance(scheduler, list) else [scheduler]:
            if isinstance(part, dict) and 'end' in part:
                self._fit_short_schedule(part)
        return super().build_param_scheduler(scheduler)

    def _fit_short_schedule(self, scheduler: dict) -> None:
        """Fit a warm-up to a run with few iterations, whose number is known only now."""
        length, end = len(self.train_dataloader), self.max_iters
        if scheduler.get('convert_to_iter_based'):
            # At least one iteration.
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
            # A warm-up of one step: mmengine would apply start_factor and never undo it.
            for key in {'LinearLR': ('start_factor',), 'ConstantLR': ('factor',)}.get(scheduler['type'], ()):
                scheduler[key] = scheduler.get('end_factor', 1.0)

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """Scale the lr like mmengine, but keep its value at the end (``eta_min_ratio``), as the authors do."""
        before = [group['lr'] for group in optim_wrapper.param_groups]
        super().scale_lr(optim_wrapper, auto_scale_lr)
        ratio = optim_wrapper.param_groups[0]['lr'] / before[0] if before[0] else 1.0
        schedulers = self.param_schedulers
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            if ratio != 1 and isinstance(scheduler, dict) and scheduler.get('eta_min_ratio') is not None:
                scheduler['eta_min_ratio'] = min(1.0, scheduler['eta_min_ratio'] / ratio)

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume. Length, lr, batch size and number of processes may change, and follow the config.

        Raises:
            ConfigError: If the config changes something that cannot change.
        """
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)  # returns a built one as it is
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        wanted = Hyperparameters(self, self.scheduler_cfg if self.param_schedulers else None)
        super().resume(filename, *args, **kwargs)
        adapt_position(self, self.resumed_meta)
        wanted.apply(self, self.resumed_schedulers)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict:
        """Load as data only, and drop the config of MMCV's old runners, which mmengine would execute on resume."""
        if str(filename).endswith('.safetensors'):  # not supported by mmengine
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
            Exception: In all processes, the error of the first, such as OSError if it cannot write.
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
        # All ranks must know, to do the same next.
        broadcast_object_list(failure)
        if own is not None:
            raise own  # with its context, such as the death of a worker
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
            replace_atomically(part, Path(out_dir, filename))
        finally:
            part.unlink(missing_ok=True)


def _name_unreadable(dataset: Any, file: Path) -> None:
    """Set the list of unreadable images in every image folder, also in wrapped datasets."""
    if isinstance(dataset, UnlabeledImages):
        dataset.unreadable_file = dataset.unreadable_file or str(file)
    for inner in (getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())):
        if inner is not None:
            _name_unreadable(inner, file)


def _pass_seeds_on(dataset: Any) -> None:
    """Let wrappers that look up indices in a list (ClassBalancedDataset) keep the seeds of a SeededSampler."""
    if isinstance(getattr(dataset, 'repeat_indices', None), list):
        dataset.repeat_indices = SeededList(dataset.repeat_indices)
    for inner in (getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())):
        if inner is not None:
            _pass_seeds_on(inner)
