"""Labeled images for probes: one folder for each class, split into training and test images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bootmae_mm.validation import MissingFileError, require

from .paths import found_images, is_hidden

SPLITS = (('train', 'test'), ('train', 'val'))
MAX_IMAGES = 5000  # of a set: a probe takes about a minute at most on one core
HELD_OUT = 0.2  # of each class, where the folder has no split of its own


class LabeledImages(NamedTuple):
    """Paths of images, their labels, and the names of the classes."""

    paths: list[str]
    labels: list[int]
    classes: list[str]


def class_folders(
    root: str | Path, max_per_class: int, max_images: int | None = MAX_IMAGES
) -> tuple[LabeledImages, LabeledImages]:
    """Find labeled images below a folder.

    The folder has one folder for each class, or ``train`` and ``test`` (or ``val``) with one for each class. Without
    such a split, a fifth of each class is held out. The same images are chosen in every call.

    Args:
        root: The folder.
        max_per_class: Largest number of images of a class, in each of the two sets; smaller if a set would otherwise
            have more than ``max_images``.
        max_images: Largest number of images of a set; None for any number.

    Returns:
        Images to compare with, and images to classify.

    Raises:
        MissingFileError: If there is no such folder.
        ConfigError: If there are not two classes with two images each, or both sets have not the same classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f'no folder {root} of labeled images')
    for names in SPLITS:
        if all(_has_folders(root / name) for name in names):
            train, test = (_of_classes(root / name, max_per_class, max_images) for name in names)
            require(train.classes == test.classes, f'{root}: {names[0]} and {names[1]} have different classes')
            return train, test
    everything = _of_classes(root, max_per_class * 2, max_images)
    labels = np.array(everything.labels)
    chosen: list[int] = []
    for label in range(len(everything.classes)):
        members = np.flatnonzero(labels == label)
        require(len(members) > 1, f'{root}: class {everything.classes[label]!r} needs at least two images')
        chosen += members[: max(1, round(HELD_OUT * len(members)))].tolist()
    rest = sorted(set(range(len(labels))) - set(chosen))
    return _subset(everything, rest), _subset(everything, sorted(chosen))


def _has_folders(folder: Path) -> bool:
    """Whether a folder has folders; ImageNet's own test set has none."""
    return folder.is_dir() and any(entry.is_dir() and not is_hidden(entry.name) for entry in os.scandir(folder))


def _subset(images: LabeledImages, indices: Sequence[int]) -> LabeledImages:
    return LabeledImages([images.paths[i] for i in indices], [images.labels[i] for i in indices], images.classes)


def _of_classes(root: Path, max_per_class: int, max_images: int | None) -> LabeledImages:
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name))
    require(len(classes) > 1, f'{root} must have a folder for each of at least two classes, but has {classes}')
    if max_images is not None:
        max_per_class = max(2, min(max_per_class, max_images // len(classes)))
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = found_images(root / name)
        # A fixed random choice: names often follow the time at which pictures were taken.
        order = np.random.RandomState(label).permutation(len(found))[:max_per_class]
        paths += [found[index] for index in order]
        labels += [label] * len(order)
    return LabeledImages(paths, labels, classes)
