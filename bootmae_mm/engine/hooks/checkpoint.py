"""Checkpoints: when to write them, what to keep, and what to do if they cannot be written."""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import Runner
from pydantic import AfterValidator, Field

from bootmae_mm.registry import HOOKS
from bootmae_mm.validation import MAX_COUNT, Count, validated

from ..recovery import LAST, write_last
from ..sharding import is_sharded, shard_states, unwrapped


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError('must be -1 or a positive int, but is 0')
    return value


CountOrAll = Annotated[int, Field(ge=-1, le=MAX_COUNT), AfterValidator(_not_zero)]


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's ``CheckpointHook`` for long runs.

    - An old checkpoint, also the best one, is removed only after the new one is written.
    - If a checkpoint cannot be written (full disk), training continues with an error in the log, and the last one is
      kept. If the last checkpoint of the run cannot be written, the run ends with an error.
    - Weights that are not finite are never saved.
    - If ``save_best`` is not a metric of the evaluator, the log says so, and training continues.
    - Before training, the disk must have room for a checkpoint.
    - The checkpoint of a sharded model (FSDP) is that of an unsharded one.

    Args:
        interval: Epochs (or iterations) between checkpoints; -1 for none.
        by_epoch: Whether ``interval`` counts epochs.
        max_keep_ckpts: Number of checkpoints to keep; -1 for all.
        keep_every: Checkpoints whose epoch (or iteration) is a multiple of this are never removed; none by default.
        **kwargs: Arguments of mmengine's: ``save_best``, ``out_dir``, ...

    Raises:
        OSError: Before training, if the disk has no room for a checkpoint; after it, if the last one is not written.
        FloatingPointError: If a weight is not finite.
    """

    @validated
    def __init__(
        self,
        interval: CountOrAll = -1,
        by_epoch: bool = True,
        max_keep_ckpts: CountOrAll = -1,
        keep_every: Count | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(interval, by_epoch, max_keep_ckpts=max_keep_ckpts, **kwargs)
        self.keep_every = keep_every
        self._unwritten: str | None = None
        self._unknown_metrics: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Find the folder, and check its free space."""
        # After a resume with a lower max_keep_ckpts, mmengine would remove milestones too.
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
        """Remove partial files of killed runs; return an error if there is no room for a checkpoint."""
        needed = checkpoint_bytes(runner)
        folder = Path(self.out_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if self.out_dir == runner.work_dir:  # locked: no other run writes here
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
        self._record(runner, str(path), list(self.keep_ckpt_ids))
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
            runner.logger.error(f'the checkpoint {path} could not be written, training continues: {error}')
            self._record(runner, *before)
            self._unwritten = f'{path} could not be written: {error}'
            return
        self._unwritten = None
        if is_main_process():
            self.finish_saving(runner, path, outdated)

    def after_train(self, runner: Runner) -> None:
        """Raise if the last checkpoint of the run was not written."""
        super().after_train(runner)
        if self._unwritten:
            raise OSError(f'training has finished, but {self._unwritten}; --resume resumes from the checkpoint before')

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        unknown = set(self.key_indicators) - {'auto', *metrics}
        for name in sorted(unknown - self._unknown_metrics):
            self._unknown_metrics.add(name)
            runner.logger.warning(
                f'save_best={name!r} is not a metric of this evaluator, which has {", ".join(map(repr, metrics))}: no '
                'best checkpoint is kept for it'
            )
        metrics = {**metrics, **dict.fromkeys(unknown)}  # mmengine skips None
        hub = runner.message_hub.runtime_info
        known, before = dict(hub), self._best_paths()
        # mmengine would remove the old ones before it writes the new ones.
        self._set_best_paths(dict.fromkeys(before))
        try:
            super()._save_best_checkpoint(runner, metrics)
        except OSError as error:
            runner.logger.error(f'the best checkpoint could not be written, training continues: {error}')
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
        """Path of the best checkpoint per metric; mmengine stores that of a single metric elsewhere."""
        return dict(self.best_ckpt_path_dict) if len(self.key_indicators) > 1 else {'': self.best_ckpt_path}

    def _set_best_paths(self, paths: dict[str, str | None]) -> None:
        if len(self.key_indicators) > 1:
            self.best_ckpt_path_dict = dict(paths)
        else:
            self.best_ckpt_path = paths['']

    def _newest(self, steps: list[int]) -> list[int]:
        return steps[-self.max_keep_ckpts :] if self.max_keep_ckpts > 0 else steps

    def _outdated(self, steps: list[int]) -> list[int]:
        """Checkpoints to delete: beyond ``max_keep_ckpts`` and not milestones."""
        old = steps[: len(steps) - len(self._newest(steps))]
        return [step for step in old if not self.keep_every or step % self.keep_every]

    def _keep(self, step: int) -> list[int]:
        """Add a checkpoint; return those to delete."""
        if self.max_keep_ckpts <= 0 or (self.keep_ckpt_ids and self.keep_ckpt_ids[-1] == step):
            return []
        steps = [*self.keep_ckpt_ids, step]
        self.keep_ckpt_ids = deque(self._newest(steps))
        return self._outdated(steps)

    def _remove(self, steps: list[int]) -> None:
        for step in steps:
            Path(self.out_dir, self.filename_tmpl.format(step)).unlink(missing_ok=True)

    def _record(self, runner: Runner, last: str | None, kept: list[int]) -> None:
        self.last_ckpt = last
        self.keep_ckpt_ids = deque(kept)
        runner.message_hub.update_info('last_ckpt', last)
        if self.max_keep_ckpts > 0:
            runner.message_hub.update_info('keep_ckpt_ids', kept)

    def finish_saving(self, runner: Runner, path: Path, outdated: list[int]) -> None:
        """Record a checkpoint as the last one, and remove those that it replaces."""
        try:
            write_last(runner.work_dir, path)
        except OSError as error:
            # A resume still finds the checkpoint by its number and time.
            runner.logger.error(f'{path} is written, but {LAST} could not be: {error}')
        try:
            self._remove(outdated)
            # Checkpoints of earlier interruptions.
            for interrupted in Path(self.out_dir).glob('interrupted_*.pth'):
                if interrupted != path:
                    interrupted.unlink(missing_ok=True)
        except OSError as error:
            runner.logger.error(f'an old checkpoint could not be removed: {error}')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Insert the gathered tensors of a sharded model; refuse weights that are not finite."""
        gathered = getattr(runner, 'gathered', None)
        if gathered is not None:
            checkpoint.update({name: value for name, value in gathered.items() if name in checkpoint})
        for name, value in checkpoint['state_dict'].items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise FloatingPointError(f'{name} is not finite at iteration {runner.iter + 1}: not saved')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Shard the tensors if the model is sharded."""
        if is_sharded(runner.model):
            shard_states(runner, checkpoint)


def checkpoint_bytes(runner: Runner) -> int:
    """Approximate size of a checkpoint: all weights, and two more numbers per trained weight (AdamW)."""
    model = unwrapped(runner.model)
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    trained = sum(value.numel() * value.element_size() for value in model.parameters() if value.requires_grad)
    return weights + 2 * trained
