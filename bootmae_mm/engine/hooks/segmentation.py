"""A check of segmentation maps while training."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import Dataset

from bootmae_mm.registry import HOOKS
from bootmae_mm.values import integer


@HOOKS.register_module()
class CheckSegmentationHook(Hook):
    """Stop at a segmentation map with an id that no class has, instead of in the middle of a CUDA kernel.

    Looks at every batch while it is still on the CPU; the number of classes is that of the data set. If the first
    batches have no labeled pixel at all the run stops, and if they have only one class beside pixels that are ignored
    (foreground written as 255?) a warning says so.

    Args:
        ignore_index: The id of pixels without label.
        first_batches: Number of batches after which it is judged what occurs in them.

    Raises:
        ValueError: With the file, the ids, and what could be meant.
    """

    def __init__(self, ignore_index: int = 255, first_batches: int = 20) -> None:
        self.ignore_index = integer(ignore_index, 'ignore_index', least=0)
        self.first_batches = integer(first_batches, 'first_batches', least=1)
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
        labeled = self._occurring - {self.ignore_index}
        if not labeled:
            raise ValueError(
                f'no pixel is labeled in the first {self._looked_at} batches: every id is {self.ignore_index}, '
                f'which is ignored, as in {path}; check the ids of the maps and reduce_zero_label, which turns 0 into '
                f'{self.ignore_index}'
            )
        if len(classes_of(runner)) == 1 and len(labeled) == 1:
            raise ValueError(
                f'the only class is all there is in the first {self._looked_at} batches, as in {path}: nothing to tell '
                'it from; let background be class 0 and the object class 1, in maps, metainfo and num_classes=2'
            )
        if len(labeled) == 1:
            runner.logger.warning(
                f'only class {labeled.pop()} occurs in the first {self._looked_at} batches, and pixels of id '
                f'{self.ignore_index}, which are ignored, as in {path}; if {self.ignore_index} is the foreground, map '
                f'it to a class: dict(type="bootmae_mm.MapLabels", mapping={{{self.ignore_index}: 1}}) after '
                'LoadAnnotations'
                if self.ignore_index in self._occurring
                else f'only class {labeled.pop()} occurs in the first {self._looked_at} batches, as in {path}'
            )

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Check them where mmseg's metric would leave pixels of an unknown id out of the score."""
        ids, path = self._check(runner.val_dataloader.dataset, data_batch)
        self._validated |= ids
        self._path = path or self._path

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Warn if the score is that of one class, and the rest of the pixels were ignored."""
        if self.ignore_index in self._validated and len(self._validated) == 2:
            runner.logger.warning(
                f'validation: only class {min(self._validated)} occurs, all other pixels are {self.ignore_index} and '
                f'ignored, as in {self._path}: the score says nothing; are its maps written as those for training?'
            )
        self._validated = set()

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Likewise."""
        self._check(runner.test_dataloader.dataset, data_batch)

    def _check(self, dataset: Dataset, data_batch: dict | None) -> tuple[set[int], str]:
        """The ids that occur in a batch, and the file of the last map."""
        occurring: set[int] = set()
        path = ''
        classes = len(dataset.metainfo['classes'])
        for sample in (data_batch or {}).get('data_samples', []):
            if isinstance(sample, list):  # of one image, seen several times (test-time augmentation)
                sample = sample[0]
            if 'gt_sem_seg' not in sample:
                continue
            # Counting is several times faster than sorting (unique).
            ids = torch.bincount(sample.gt_sem_seg.data.flatten()).nonzero().flatten().tolist()
            occurring.update(ids)
            path = sample.get('seg_map_path') or path
            wrong = [i for i in ids if i >= classes and i != self.ignore_index]
            if wrong:
                raise ValueError(
                    f'{sample.seg_map_path} has ids {wrong[:5]}, but there are {classes} classes (0..{classes - 1}, '
                    f'and {self.ignore_index} for no label); check the classes of the data set and reduce_zero_label'
                )
        return occurring, path


def classes_of(runner: Runner) -> tuple[str, ...]:
    """Names of the classes of the training set."""
    return runner.train_dataloader.dataset.metainfo['classes']
