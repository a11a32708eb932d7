"""Checkpoints of any kind of run."""

from __future__ import annotations

from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import Runner

from bootmae_mm.registry import HOOKS

from ..sharding import divide_states, gathered_states, is_sharded


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's ``CheckpointHook``, which also gathers a model that is divided among processes (FSDP), and divides it.

    Args: as for mmengine's.
    """

    _gathered: dict | None = None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        # All processes are here; in before_save_checkpoint it is the first alone.
        if is_sharded(runner.model):
            self._gathered = gathered_states(runner)
        super()._save_checkpoint_with_step(runner, step, meta)
        self._gathered = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put whole tensors in place of this process's shares."""
        if self._gathered is not None:
            checkpoint.update({name: value for name, value in self._gathered.items() if name in checkpoint})

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Divide whole tensors if the model is."""
        if is_sharded(runner.model):
            divide_states(runner, checkpoint)
