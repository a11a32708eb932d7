"""Hooks that draw pictures: reconstructions during training, curves and a report at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils.dl_utils import collect_env
from torch import Tensor, nn

from bootmae_mm.registry import HOOKS
from bootmae_mm.validation import Count, Natural, validated
from bootmae_mm.version import __version__
from bootmae_mm.visualization import (
    draw_curves,
    draw_panels,
    drawn,
    feature_panels,
    predicts_pixels,
    read_scalars,
    reconstruct,
    write_report,
)

from ..sharding import gathered_parameters, is_sharded, unwrapped


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Writes pictures to the visualizer (local files, TensorBoard) during training: reconstructions, and features.

    Always the same images of the training set, with the same crops and masks. The features are those of the patches of
    whole images, as colors, and what the class token attends to (:func:`feature_panels`).

    Args:
        interval: Epochs between pictures; there is also one at the end.
        num_images: Number of images, one per row.
        by_epoch: Whether ``interval`` counts epochs; otherwise iterations.
        channels: One or three channels to show, counted from 0; by default the first three.
        features: Draw the features, too.
    """

    priority = 'LOW'

    @validated
    def __init__(
        self,
        interval: Count = 20,
        num_images: Count = 4,
        by_epoch: bool = True,
        channels: Sequence[Natural] | None = None,
        features: bool = True,
    ) -> None:
        self.features = features
        self.by_epoch = by_epoch
        self.channels = channels
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
        if not (predicts_pixels(model) or self.features) or not (is_main_process() or is_sharded(model)):
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
                pages = self._pages(model, batch['inputs'], batch['ids_keep'][::masks], batch['ids_mask'][::masks])
        finally:
            model.train(was_training)
        for name, panels in pages.items() if is_main_process() else ():
            runner.visualizer.add_image(name, draw_panels(panels, channels=self.channels), step=step)

    def _pages(
        self, model: nn.Module, images: Tensor, ids_keep: Tensor, ids_mask: Tensor
    ) -> dict[str, dict[str, Tensor]]:
        """Panels of each picture."""
        pages = {}
        if predicts_pixels(model):
            pages['reconstruction'] = reconstruct(model, images, ids_keep, ids_mask)
        if self.features:
            statistics = model.data_preprocessor
            pages['features'] = feature_panels(model.backbone, images, statistics.mean, statistics.std)
        return pages


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


@HOOKS.register_module()
class ReportHook(Hook):
    """Writes ``report.html`` at the end of a run: one file with summary, probes, curves, pictures, config, machine.

    Below the pictures it has the commands that use the run. Written also if the run was interrupted after its first log
    entry. Place it after :class:`CurvesHook`.
    """

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Note the time."""
        self._start, self._first = time.monotonic(), runner.iter

    @master_only
    def after_run(self, runner: Runner) -> None:
        """Write the report from the files in the work_dir."""
        run = '*' if runner._resume else runner.timestamp
        scalars = read_scalars(runner.work_dir, run=run)
        if not scalars:
            return
        path = Path(runner.work_dir) / 'report.html'
        pictures = []
        for title, name in (('Reconstructions', 'reconstruction'), ('Features', 'features')):
            files = drawn(runner.work_dir, name, run)
            pictures += [(f'{title} at the end', files[-1])] if files else []
            pictures += [(f'{title} early in the run', files[0])] if len(files) > 1 else []
        curves = Path(runner.work_dir) / 'curves.png'
        if curves.is_file():
            pictures.insert(0, ('Curves', curves))
        folder, now = Path(runner.work_dir).resolve(), time.strftime('%Y-%m-%d %H:%M')
        try:
            write_report(
                path,
                title=f'Run {folder.name}',
                about=f'bootmae_mm {__version__}, {now}, in {folder}',
                summary=self._summary(runner, scalars),
                pictures=pictures,
                probes=[entry for entry in scalars if 'probe_knn' in entry],
                commands=[
                    f'bootmae embed {runner.work_dir} IMAGES --to features.npy',
                    f'bootmae reconstruct {runner.work_dir} IMAGES',
                    f'bootmae export {runner.work_dir} --to timm   # or hf, mmpretrain, onnx',
                ],
                details={
                    'Config': runner.cfg.pretty_text,
                    'Machine': '\n'.join(f'{key}: {value}' for key, value in collect_env().items()),
                },
            )
        except OSError as error:
            runner.logger.error(f'{path} could not be written: {error}')
        else:
            runner.logger.info(f'report: {path}')

    def _summary(self, runner: Runner, scalars: list[dict]) -> dict[str, object]:
        """Rows of the first table."""
        last = next(entry for entry in reversed(scalars) if 'loss' in entry)
        loader = runner.train_dataloader
        iterations, seconds = runner.iter - self._first, time.monotonic() - self._start
        seen = iterations * loader.batch_size * runner.world_size
        model = unwrapped(runner.model)
        weights = sum(parameter.numel() for parameter in model.backbone.parameters())
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
        done = f'{runner.epoch} of {runner.max_epochs} epochs, ' if hasattr(runner.train_loop, 'run_epoch') else ''
        rows: dict[str, object] = {
            'Images': f'{len(loader.dataset):,}',
            'Encoder': f'{type(model.backbone).__name__}, {weights:,} weights',
            'Training': f'{done}{runner.iter:,} of {runner.max_iters:,} iterations',
            'Loss': ', '.join(f'{key} {last[key]:.4f}' for key in last if key == 'loss' or key.endswith('_loss')),
            'Device': f'{runner.world_size} x {device}',
            'Time': f'{timedelta(seconds=round(seconds))} for the last {iterations:,} iterations',
            'Speed': f'{seen / max(seconds, 1e-9):.1f} images/s, probes and pictures included',
        }
        if torch.cuda.is_available():
            rows['Memory'] = f'{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB'
        return rows
