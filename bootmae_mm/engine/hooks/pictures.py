"""Hooks that draw pictures: reconstructions during training, curves at the end."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from bootmae_mm.registry import HOOKS
from bootmae_mm.validation import Count, validated
from bootmae_mm.visualization import draw_curves, draw_reconstruction, predicts_pixels, read_scalars, reconstruct

from ..sharding import gathered_parameters, is_sharded, unwrapped


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Writes a picture of reconstructions to the visualizer (local files, TensorBoard) during training.

    Always the same images of the training set, with the same crops and masks.

    Args:
        interval: Epochs between pictures; there is also one at the end.
        num_images: Number of images, one per row.
        by_epoch: Whether ``interval`` counts epochs; otherwise iterations.
    """

    priority = 'LOW'

    @validated
    def __init__(self, interval: Count = 20, num_images: Count = 4, by_epoch: bool = True) -> None:
        self.by_epoch = by_epoch
        self.interval = interval
        self.num_images = num_images

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Draw at the end of every ``interval``-th epoch and of the run, with any loop."""
        done = runner.iter + 1
        unit = len(runner.train_dataloader) if self.by_epoch else 1
        if done % (self.interval * unit) == 0 or done == runner.max_iters:
            try:
                self._draw(runner, step=-(-done // unit))
            except Exception as error:  # noqa: BLE001  a picture never ends a run
                if is_sharded(unwrapped(runner.model)):
                    raise  # other ranks wait for this one
                runner.logger.error(f'no picture could be drawn, training continues: {type(error).__name__}: {error}')

    @torch.no_grad()
    def _draw(self, runner: Runner, step: int) -> None:
        model = unwrapped(runner.model)
        # A sharded model needs all ranks.
        if not predicts_pixels(model) or not (is_main_process() or is_sharded(model)):
            return
        dataset = runner.train_dataloader.dataset
        # Imported here, because mmpretrain's data sets take seconds to import.
        from bootmae_mm.data.samplers import SeededIndex, preserved_random_state
        from bootmae_mm.data.transforms import collate

        with preserved_random_state():
            batch = collate([dataset[SeededIndex(i, i)] for i in range(min(self.num_images, len(dataset)))])
        batch = model.data_preprocessor(batch)
        was_training = model.training
        masks = len(batch['ids_mask']) // len(batch['inputs'])  # the first of each image
        try:
            model.eval()
            # Eager: a few pictures are not worth another compilation of the blocks.
            with gathered_parameters(model), torch.compiler.set_stance('force_eager'):
                panels = reconstruct(model, batch['inputs'], batch['ids_keep'][::masks], batch['ids_mask'][::masks])
        finally:
            model.train(was_training)
        if is_main_process():
            runner.visualizer.add_image('reconstruction', draw_reconstruction(panels), step=step)


@HOOKS.register_module()
class CurvesHook(Hook):
    """Draws losses, learning rate, decay and norms of the whole run, resumed parts included, to ``curves.png``."""

    priority = 'LOWEST'

    @master_only
    def after_run(self, runner: Runner) -> None:
        """Draw the scalars that the visualizer wrote to the work_dir."""
        scalars = read_scalars(runner.work_dir, run='*' if runner._resume else runner.timestamp)
        if not scalars:
            return
        path = Path(runner.work_dir) / 'curves.png'
        try:
            draw_curves(scalars, path)
        except OSError as error:
            runner.logger.error(f'{path} could not be written: {error}')
        else:
            runner.logger.info(f'curves: {path}')
