"""Hooks that leave pictures: reconstructions during training, curves at its end."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from bootmae_mm.registry import HOOKS
from bootmae_mm.values import check_bool, integer
from bootmae_mm.visualization import draw_curves, draw_reconstruction, read_scalars, reconstruct

from ..sharding import gathered_parameters, is_sharded, unwrapped


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Writes a picture of reconstructions to the visualizer (local files, TensorBoard) during training.

    Always the same images with the same crops and masks, taken from the training set.

    Args:
        interval: Epochs between two pictures; also one at the end.
        num_images: Rows of the picture.
        by_epoch: False: the interval is in iterations.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 20, num_images: int = 4, by_epoch: bool = True) -> None:
        self.by_epoch = check_bool(by_epoch, 'by_epoch')
        self.interval = integer(interval, 'interval', least=1)
        self.num_images = integer(num_images, 'num_images', least=1)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Draw at the end of an epoch, if it is time, and at the end of the run; for any kind of loop."""
        done = runner.iter + 1
        unit = len(runner.train_dataloader) if self.by_epoch else 1
        if done % (self.interval * unit) == 0 or done == runner.max_iters:
            try:
                self._draw(runner, step=-(-done // unit))
            except Exception as error:  # noqa: BLE001  a picture never ends a run
                if is_sharded(unwrapped(runner.model)):
                    raise  # other processes wait for this one
                runner.logger.error(f'no picture could be drawn, training goes on: {type(error).__name__}: {error}')

    @torch.no_grad()
    def _draw(self, runner: Runner, step: int) -> None:
        model = unwrapped(runner.model)
        # A model that is divided among processes needs all of them.
        if getattr(model, 'pixel_head', None) is None or not (is_main_process() or is_sharded(model)):
            return
        dataset = runner.train_dataloader.dataset
        # Here, for mmpretrain's data sets take seconds to import, and not every run of the tools needs them.
        from bootmae_mm.data.samplers import SeededIndex, preserved_random_state
        from bootmae_mm.data.transforms import collate

        with preserved_random_state():
            batch = collate([dataset[SeededIndex(i, i)] for i in range(min(self.num_images, len(dataset)))])
        batch = model.data_preprocessor(batch)
        was_training = model.training
        masks = len(batch['ids_mask']) // len(batch['inputs'])  # the first of each image
        # Not compiled anew (if blocks are) for a few pictures.
        try:
            model.eval()
            with gathered_parameters(model), torch.compiler.set_stance('force_eager'):
                panels = reconstruct(model, batch['inputs'], batch['ids_keep'][::masks], batch['ids_mask'][::masks])
        finally:
            model.train(was_training)
        if is_main_process():
            runner.visualizer.add_image('reconstruction', draw_reconstruction(panels), step=step)


@HOOKS.register_module()
class CurvesHook(Hook):
    """Draws losses, learning rate, decay and norms of the whole run, resumed parts too, to ``curves.png``."""

    priority = 'LOWEST'

    @master_only
    def after_run(self, runner: Runner) -> None:
        """Draw the scalars that the visualizer left in the work_dir."""
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
