"""A check of segmentation maps while training."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import Dataset

from bootmae_mm.registry import HOOKS
from bootmae_mm.validation import ConfigError, Count, Natural, require, validated


@HOOKS.register_module()
class CheckSegmentationHook(Hook):
    """Stops at a segmentation map with an unknown id, instead of failing inside a CUDA kernel.

    Checks every batch while it is on the CPU, against the number of classes of the data set. The run stops if the first
    batches have no labeled pixel or only one class, and a warning tells if they have one class and ignored pixels
    (foreground written as 255?).

    Args:
        ignore_index: Id of pixels without a label.
        first_batches: Number of first batches that are judged together.

    Raises:
        ConfigError: With the file, the ids, and what they may mean.
    """

    @validated
    def __init__(self, ignore_index: Natural = 255, first_batches: Count = 20) -> None:
        self.ignore_index = ignore_index
        self.first_batches = first_batches
        self._looked_at = 0
        self._occurring: set[int] = set()
        self._validated: set[int] = set()
        self._path = ''

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Check ``gt_sem_seg`` of the batch's samples."""
        ids, path = self._check(runner.train_dataloader.dataset, data_batch)
        if self._looked_at < self.first_batches:
            self._occurring |= ids
            self._looked_at += 1
            if self._looked_at == min(self.first_batches, runner.max_iters):
                self._judge(runner, path)

    def _judge(self, runner: Runner, path: str) -> None:
        """Judge the ids of the first batches."""
        labeled = self._occurring - {self.ignore_index}
        where = f'in the first {self._looked_at} batches, as in {path}'
        if not labeled:
            problem = (
                f'no pixel is labeled {where}: every id is {self.ignore_index}, which is ignored; check the ids of the '
                f'maps and reduce_zero_label, which turns 0 into {self.ignore_index}'
            )
        elif len(labeled) > 1:
            return
        elif len(runner.train_dataloader.dataset.metainfo['classes']) == 1:
            problem = (
                f'there is nothing but the only class {where}: make background class 0 and the object class 1, in '
                'maps, metainfo and num_classes=2'
            )
        else:
            problem = f'only class {min(labeled)} occurs {where}'
            if self.ignore_index in self._occurring:
                problem += (
                    f', and ignored pixels of id {self.ignore_index}; if that is the foreground, map it to a class: '
                    f'dict(type="bootmae_mm.MapLabels", mapping={{{self.ignore_index}: 1}}) after LoadAnnotations'
                )
            runner.logger.warning(problem)
            return
        raise ConfigError(problem)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Check the maps: mmseg's metric would ignore pixels with an unknown id."""
        ids, path = self._check(runner.val_dataloader.dataset, data_batch)
        self._validated |= ids
        self._path = path or self._path

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Warn if one class and ignored pixels are all there is."""
        if self.ignore_index in self._validated and len(self._validated) == 2:
            runner.logger.warning(
                f'validation: only class {min(self._validated)} occurs, all other pixels are {self.ignore_index} and '
                f'ignored, as in {self._path}: the score is meaningless; do its maps have the ids of the training maps?'
            )
        self._validated = set()

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Check the maps."""
        self._check(runner.test_dataloader.dataset, data_batch)

    def _check(self, dataset: Dataset, data_batch: dict | None) -> tuple[set[int], str]:
        """Ids that occur in a batch, and the file of its last map."""
        occurring: set[int] = set()
        path = ''
        classes = len(dataset.metainfo['classes'])
        for sample in (data_batch or {}).get('data_samples', []):
            if isinstance(sample, list):  # variants of one image (test-time augmentation)
                sample = sample[0]
            if 'gt_sem_seg' not in sample:
                continue
            # Several times as fast as unique, which sorts.
            ids = torch.bincount(sample.gt_sem_seg.data.flatten()).nonzero().flatten().tolist()
            occurring.update(ids)
            path = sample.get('seg_map_path') or path
            wrong = [i for i in ids if i >= classes and i != self.ignore_index]
            require(
                not wrong,
                f'{sample.get("seg_map_path")} has ids {wrong[:5]}, but there are {classes} classes (0..{classes - 1}, '
                f'and {self.ignore_index} for no label); check the classes of the data set and reduce_zero_label',
            )
        return occurring, path
