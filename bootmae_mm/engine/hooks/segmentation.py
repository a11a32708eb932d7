"""A check of segmentation maps while training."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import Dataset

from bootmae_mm.registry import HOOKS


@HOOKS.register_module()
class CheckSegmentationHook(Hook):
    """Stop at a segmentation map with an id that no class has, instead of in the middle of a CUDA kernel.

    Looks at every batch while it is still on the CPU; the number of classes is that of the data set.

    Args:
        ignore_index: The id of pixels without label.

    Raises:
        ValueError: With the file, the ids, and what could be meant.
    """

    def __init__(self, ignore_index: int = 255) -> None:
        self.ignore_index = ignore_index

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Check ``gt_sem_seg`` of the batch's samples."""
        self._check(runner.train_dataloader.dataset, data_batch)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Check them where mmseg's metric would leave pixels of an unknown id out of the score."""
        self._check(runner.val_dataloader.dataset, data_batch)

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Likewise."""
        self._check(runner.test_dataloader.dataset, data_batch)

    def _check(self, dataset: Dataset, data_batch: dict | None) -> None:
        classes = len(dataset.metainfo['classes'])
        for sample in (data_batch or {}).get('data_samples', []):
            if isinstance(sample, list):  # of one image, seen several times (test-time augmentation)
                sample = sample[0]
            if 'gt_sem_seg' not in sample:
                continue
            # Counting is several times faster than sorting (unique).
            ids = torch.bincount(sample.gt_sem_seg.data.flatten()).nonzero().flatten().tolist()
            wrong = [i for i in ids if i >= classes and i != self.ignore_index]
            if wrong:
                raise ValueError(
                    f'{sample.seg_map_path} has ids {wrong[:5]}, but there are {classes} classes (0..{classes - 1}, '
                    f'and {self.ignore_index} for no label); check the classes of the data set and reduce_zero_label'
                )
