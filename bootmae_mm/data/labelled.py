"""Data of downstream tasks: labelled folders, and a check of segmentation maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.datasets import CustomDataset

from bootmae_mm.registry import DATASETS, TRANSFORMS


@DATASETS.register_module()
class LabelledFolder(CustomDataset):
    """mmpretrain's ``CustomDataset`` (a folder for each class), of which only a share of the labels may be used.

    The same images are chosen in every process and every run: the first of each class in a random order of their own.

    Args:
        label_share: Share of the images of each class to use, in (0, 1], at least one image.
        seed: Of the order from which they are taken.
        **kwargs: As for ``CustomDataset``: ``data_root``, ``data_prefix``, ``ann_file``, ``pipeline``, ...

    Raises:
        ValueError: If the share is not in (0, 1].
        FileNotFoundError: If there is no such folder.
    """

    def __init__(self, label_share: float = 1.0, seed: int = 0, **kwargs: Any) -> None:
        if not isinstance(label_share, (int, float)) or not 0 < label_share <= 1:
            raise ValueError(f'label_share must be in (0, 1], but is {label_share!r}')
        self.label_share = label_share
        self.seed = seed
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """Paths and labels, one dict each."""
        samples = super().load_data_list()
        if self.label_share == 1:
            return samples
        labels = np.array([sample['gt_label'] for sample in samples])
        chosen: list[int] = []
        for label in np.unique(labels):
            members = np.random.RandomState([self.seed, label]).permutation(np.flatnonzero(labels == label))
            chosen.extend(members[: max(1, round(self.label_share * len(members)))])
        return [samples[index] for index in sorted(chosen)]


@TRANSFORMS.register_module()
class CheckSegmentation(BaseTransform):
    """Stop at a segmentation map with an id that no class has, instead of in the middle of a CUDA kernel.

    Comes after ``LoadAnnotations`` and changes nothing.

    Args:
        num_classes: Number of classes of the head.
        ignore_index: The id of pixels without label.

    Raises:
        ValueError: With the file, the ids, and what could be meant.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def transform(self, results: dict) -> dict:
        """Check ``gt_seg_map`` (H, W)."""
        # Counting is several times faster than sorting (np.unique).
        found = np.flatnonzero(np.bincount(results['gt_seg_map'].ravel().astype(np.int64)))
        wrong = [int(i) for i in found if i >= self.num_classes and i != self.ignore_index]
        if wrong:
            raise ValueError(
                f'{results.get("seg_map_path", "a segmentation map")} has ids {wrong[:5]}, but there are '
                f'{self.num_classes} classes (0..{self.num_classes - 1}, and {self.ignore_index} for no label); '
                'check num_classes of the heads and of CheckSegmentation, and reduce_zero_label'
            )
        return results
