"""Checkpoints: which are written and kept, what goes into them, and what happens if they cannot be written."""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import Runner

from bootmae_mm.registry import HOOKS
from bootmae_mm.values import integer

from ..recovery import LAST, name_last
from ..sharding import divide_states, is_sharded, unwrapped


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's ``CheckpointHook`` for runs that last days.

    - An old checkpoint, the best one too, is removed once the new one is safe, not before.
    - If a checkpoint cannot be written (a full disk), training goes on with an error in the log; the last one stays.
      Where that was the last one of the run, the run ends with an error.
    - Weights that are not finite are never saved.
    - If ``save_best`` names a metric that the evaluator does not have, a line of the log says so, and the run goes on.
    - Before training, the disk must have room for a checkpoint.
    - A model that is divided among processes (FSDP) is saved whole, and divided as it is loaded.

    Args:
        keep_every: Checkpoints whose epoch (or iteration) is a multiple of this are never removed; none by default.
        **kwargs: As for mmengine's: ``interval``, ``max_keep_ckpts``, ``save_best``, ...

    Raises:
        ValueError: If ``keep_every`` is less than 1, ``interval`` or ``max_keep_ckpts`` is 0 or less than -1, or
            ``by_epoch`` no bool.
        OSError: Before training, if the disk has no room for a checkpoint; after it, if the last one is not written.
        FloatingPointError: If a weight is not finite.
    """

    def __init__(self, *args: object, keep_every: int | None = None, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        for name in ('interval', 'max_keep_ckpts'):  # -1: never, and all
            if integer(getattr(self, name), name, least=-1) == 0:
                raise ValueError(f'{name} must be -1 or an int >= 1, but is 0')
        if not isinstance(self.by_epoch, bool):
            raise ValueError(f'by_epoch must be True or False, but is {self.by_epoch!r}')
        self._unwritten: str | None = None
        self._unknown_metrics: set[str] = set()
        self.keep_every = None if keep_every is None else integer(keep_every, 'keep_every', least=1)

    def before_train(self, runner: Runner) -> None:
        """Find the folder, and see whether there is room in it."""
        # mmengine would remove what is too much after a resume with a lower max_keep_ckpts, milestones included.
        kept = runner.message_hub.runtime_info.get('keep_ckpt_ids', [])
        runner.message_hub.update_info('keep_ckpt_ids', self._newest(kept))
        super().before_train(runner)
        if self.max_keep_ckpts <= 0:
            self.keep_ckpt_ids: deque = deque()
        failure: list[str | None] = [None]
        if is_main_process():
            try:
                self._remove(self._outdated(kept))
                if '://' not in str(self.out_dir):
                    failure[0] = self._make_room(runner)
            except OSError as error:
                failure[0] = str(error)
        broadcast_object_list(failure)
        if failure[0] is not None:
            raise OSError(failure[0])

    def _make_room(self, runner: Runner) -> str | None:
        """Remove what killed runs left; say if there is no room for a checkpoint."""
        needed = checkpoint_bytes(runner)
        folder = Path(self.out_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if self.out_dir == runner.work_dir:  # which is locked: no other run is writing
            for part in folder.glob('.*.pth.part'):
                part.unlink(missing_ok=True)
        free = shutil.disk_usage(self.out_dir).free
        count = max(self.max_keep_ckpts, 0) + 1
        if free < needed:
            return f'a checkpoint takes {needed / 2**20:,.1f} MiB, but {self.out_dir} has {free / 2**20:,.1f} free'
        if free < count * needed:
            runner.logger.warning(
                f'{count} checkpoints take {count * needed / 2**20:,.0f} MiB, but {self.out_dir} has '
                f'{free / 2**20:,.0f} free'
            )
        return None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        path = Path(self.out_dir, self.filename_tmpl.format(step))
        before = self.last_ckpt, list(self.keep_ckpt_ids)
        outdated = self._keep(step)
        self._note(runner, str(path), list(self.keep_ckpt_ids))
        try:
            runner.save_checkpoint(
                self.out_dir,
                path.name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        except OSError as error:
            runner.logger.error(f'the checkpoint {path} could not be written, training goes on: {error}')
            self._note(runner, *before)
            self._unwritten = f'{path} could not be written: {error}'
            return
        self._unwritten = None
        if is_main_process():
            self.finish_saving(runner, path, outdated)

    def after_train(self, runner: Runner) -> None:
        """What mmengine does; and an error if what was trained last is lost."""
        super().after_train(runner)
        if self._unwritten:
            raise OSError(f'the training is over, but {self._unwritten}; with --resume it goes on from the one before')

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        unknown = set(self.key_indicators) - {'auto', *metrics}
        for name in sorted(unknown - self._unknown_metrics):
            self._unknown_metrics.add(name)
            runner.logger.warning(
                f'save_best={name!r} is no metric of this evaluator, which has {", ".join(map(repr, metrics))}: no '
                'best checkpoint is kept by it'
            )
        metrics = {**metrics, **dict.fromkeys(unknown)}  # mmengine passes over None
        hub = runner.message_hub.runtime_info
        known, before = dict(hub), self._best_paths()
        # mmengine removes those that it knows of before it writes the new ones.
        self._set_best_paths(dict.fromkeys(before))
        try:
            super()._save_best_checkpoint(runner, metrics)
        except OSError as error:
            runner.logger.error(f'the best checkpoint could not be written, training goes on: {error}')
            hub.clear()
            hub.update(known)
            self._set_best_paths(before)
            return
        after = self._best_paths()
        self._set_best_paths({name: path or before.get(name) for name, path in after.items()})
        if is_main_process():
            for path in set(filter(None, before.values())) - set(self._best_paths().values()):
                Path(path).unlink(missing_ok=True)

    def _best_paths(self) -> dict[str, str | None]:
        """Path of the best checkpoint of each metric; of a single one mmengine keeps it elsewhere."""
        return dict(self.best_ckpt_path_dict) if len(self.key_indicators) > 1 else {'': self.best_ckpt_path}

    def _set_best_paths(self, paths: dict[str, str | None]) -> None:
        if len(self.key_indicators) > 1:
            self.best_ckpt_path_dict = dict(paths)
        else:
            self.best_ckpt_path = paths['']

    def _newest(self, steps: list[int]) -> list[int]:
        return steps[-self.max_keep_ckpts :] if self.max_keep_ckpts > 0 else steps

    def _outdated(self, steps: list[int]) -> list[int]:
        """Those that are to go: too old, and no milestones."""
        old = steps[: len(steps) - len(self._newest(steps))]
        return [step for step in old if not self.keep_every or step % self.keep_every]

    def _keep(self, step: int) -> list[int]:
        """Note a new checkpoint; return those that are to go."""
        if self.max_keep_ckpts <= 0 or (self.keep_ckpt_ids and self.keep_ckpt_ids[-1] == step):
            return []
        steps = [*self.keep_ckpt_ids, step]
        self.keep_ckpt_ids = deque(self._newest(steps))
        return self._outdated(steps)

    def _remove(self, steps: list[int]) -> None:
        for step in steps:
            Path(self.out_dir, self.filename_tmpl.format(step)).unlink(missing_ok=True)

    def _note(self, runner: Runner, last: str | None, kept: list[int]) -> None:
        self.last_ckpt = last
        self.keep_ckpt_ids = deque(kept)
        runner.message_hub.update_info('last_ckpt', last)
        if self.max_keep_ckpts > 0:
            runner.message_hub.update_info('keep_ckpt_ids', kept)

    def finish_saving(self, runner: Runner, path: Path, outdated: list[int]) -> None:
        """Name a checkpoint as the last one, and remove what it replaces."""
        try:
            name_last(runner.work_dir, path)
        except OSError as error:
            # A later start finds the checkpoint by its number and time.
            runner.logger.error(f'{path} is written, but {LAST} could not be: {error}')
        try:
            self._remove(outdated)
            # What was written when an earlier part of the run was interrupted.
            for interrupted in Path(self.out_dir).glob('interrupted_*.pth'):
                if interrupted != path:
                    interrupted.unlink(missing_ok=True)
        except OSError as error:
            runner.logger.error(f'an old checkpoint could not be removed: {error}')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put whole tensors in place of this process's shares; refuse what is not finite."""
        gathered = getattr(runner, 'gathered', None)
        if gathered is not None:
            checkpoint.update({name: value for name, value in gathered.items() if name in checkpoint})
        for name, value in checkpoint['state_dict'].items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise FloatingPointError(f'{name} is not finite at iteration {runner.iter + 1}: not saved')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Divide whole tensors if the model is."""
        if is_sharded(runner.model):
            divide_states(runner, checkpoint)


def checkpoint_bytes(runner: Runner) -> int:
    """Size of a checkpoint, about: all weights, and two numbers more for each that is trained (AdamW)."""
    model = unwrapped(runner.model)
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    trained = sum(value.numel() * value.element_size() for value in model.parameters() if value.requires_grad)
    return weights + 2 * trained
