"""Images with labels, in a folder for each class."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from mmpretrain.datasets import CustomDataset
from mmpretrain.datasets.custom import get_samples

from bootmae_mm.registry import DATASETS
from bootmae_mm.values import number

from .paths import check_inside, is_hidden


@DATASETS.register_module()
class LabelledFolder(CustomDataset):
    """mmpretrain's ``CustomDataset`` (a folder for each class), of which only a share of the labels may be used.

    The same images are chosen in every process and every run: the first of each class in a random order of their own.

    Args:
        label_share: Share of the images of each class to use, in (0, 1], at least one image.
        seed: Of the order from which they are taken.
        **kwargs: As for ``CustomDataset``: ``data_root``, ``data_prefix``, ``ann_file``, ``pipeline``, ...

    Raises:
        ValueError: If the share is not in (0, 1], or a list leads out of the folder.
        FileNotFoundError: If there is no such folder.
    """

    def __init__(self, label_share: float = 1.0, seed: int = 0, **kwargs: Any) -> None:
        self.label_share = number(label_share, 'label_share', above=0, most=1)
        self.seed = seed
        super().__init__(**kwargs)

    def _find_samples(self) -> list[tuple[str, int]]:
        """Without hidden files and folders, which mmpretrain would take for classes and doubles."""
        names = [entry.name for entry in os.scandir(self.img_prefix) if entry.is_dir()]
        hidden = [name for name in names if is_hidden(name)]
        if not self.with_label or not hidden:
            samples = super()._find_samples()
        else:
            classes = sorted(set(names) - set(hidden))
            self.folder_to_idx = {name: index for index, name in enumerate(classes)}
            samples, _ = get_samples(self.img_prefix, self.folder_to_idx, is_valid_file=self.is_valid_file)
            self._metainfo.setdefault('classes', tuple(classes))
        root = os.path.join(self.img_prefix, '')
        return [sample for sample in samples if not any(map(is_hidden, sample[0].removeprefix(root).split(os.sep)))]

    def load_data_list(self) -> list[dict]:
        """Paths and labels, one dict each."""
        samples = super().load_data_list()
        if self.ann_file and self.img_prefix:  # without a folder the list may name what it likes
            paths, prefix = (sample['img_path'] for sample in samples), os.path.join(self.img_prefix, '')
            check_inside((path.removeprefix(prefix) for path in paths), self.img_prefix, self.ann_file)
        if self.label_share == 1:
            return samples
        labels = np.array([sample['gt_label'] for sample in samples])
        chosen: list[int] = []
        for label in np.unique(labels):
            members = np.random.RandomState([self.seed, label]).permutation(np.flatnonzero(labels == label))
            chosen.extend(members[: max(1, round(self.label_share * len(members)))])
        return [samples[index] for index in sorted(chosen)]
