"""Images with labels, in a folder for each class."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from mmpretrain.datasets import CustomDataset
from mmpretrain.datasets.custom import get_samples

from bootmae_mm.registry import DATASETS
from bootmae_mm.validation import Natural, PositiveShare, validated

from .paths import check_inside, is_hidden


@DATASETS.register_module()
class LabelledFolder(CustomDataset):
    """mmpretrain's ``CustomDataset`` (one folder per class), with the option to use a share of the labels only.

    The same images are chosen in every process and every run: the first of each class in a fixed random order.

    Args:
        label_share: Share of the images of each class to use, in (0, 1]; at least one image.
        seed: Seed of the order.
        **kwargs: Arguments of ``CustomDataset``: ``data_root``, ``data_prefix``, ``ann_file``, ``pipeline``, ...

    Raises:
        ConfigError: If a list leads out of the folder.
        FileNotFoundError: If there is no such folder.
    """

    @validated
    def __init__(self, label_share: PositiveShare = 1.0, seed: Natural = 0, **kwargs: Any) -> None:
        self.label_share = label_share
        self.seed = seed
        super().__init__(**kwargs)

    def _find_samples(self) -> list[tuple[str, int]]:
        """Skip hidden files and folders, which mmpretrain would take for classes and duplicates."""
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
        if self.ann_file and self.img_prefix:  # without a folder the list may name any path
            paths, prefix = (sample['img_path'] for sample in samples), os.path.join(self.img_prefix, '')
            check_inside((path.removeprefix(prefix) for path in paths), self.img_prefix, self.ann_file)
        if self.label_share == 1:  # all images, in their order
            return samples
        labels = np.array([sample['gt_label'] for sample in samples])
        chosen: list[int] = []
        for label in np.unique(labels):
            # One generator per class: other classes do not change the choice.
            members = np.random.RandomState([self.seed, label]).permutation(np.flatnonzero(labels == label))
            chosen.extend(members[: max(1, round(self.label_share * len(members)))])
        return [samples[index] for index in sorted(chosen)]
