"""What features are worth on labeled images, beside the same encoder with random weights and the pixels themselves."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bootmae_mm.data.class_folders import LabeledImages, class_folders
from bootmae_mm.evaluation.finetuning import FineTuning, draw_labels, finetuned_accuracy
from bootmae_mm.evaluation.probes import knn_accuracy, linear_accuracy
from bootmae_mm.validation import Count, Natural, parse, require, validated

from .embedding import Embeddings, embed
from .encoder import Encoder, load_encoder

PIXEL_SIDE = 32  # of the pictures that are compared pixel by pixel

Labeled = tuple[torch.Tensor, torch.Tensor]  # features (N, D), labels (N,)


@validated
def probe(
    checkpoint: str | Path | Encoder,
    data: str | Path,
    k: Count = 20,
    labels_per_class: Sequence[Count] = (1, 10),
    max_per_class: Count = 1000,
    baselines: bool = True,
    finetune: Sequence[Count] = (),
    recipe: dict[str, Any] | None = None,
    draws: Count = 1,
    batch_size: Count = 64,
    num_workers: Natural = 0,
    prefix: str | None = None,
) -> dict[str, dict[str, float]]:
    """Classify labeled images by their frozen features.

    Args:
        checkpoint: A checkpoint, the work_dir of a run, or an :class:`Encoder`.
        data: Folder with a folder for each class, or ``train`` and ``test`` (or ``val``) of such folders; without them,
            a fifth of each class is held out.
        k: Number of neighbors.
        labels_per_class: Numbers of labels of each class for further linear classifiers, each the mean of five draws.
        max_per_class: Number of images of a class to use at most, in each of the two sets.
        baselines: Classify by random weights and by pixels, too.
        finetune: Numbers of labels of each class to fine-tune the whole encoder with, which takes minutes each.
        recipe: Fields of :class:`bootmae_mm.evaluation.FineTuning`.
        draws: Draws of labels for ``finetune``, of which the mean counts.
        batch_size: Images at a time.
        num_workers: Processes that read images.
        prefix: ``'backbone.'`` for the student (default), ``'teacher.'`` for the momentum encoder.

    Returns:
        For ``'features'``, ``'random weights'`` and ``'pixels'`` (32 x 32, in gray or colors): accuracies in percent,
        ``'kNN'``, ``'1 label'``, ``'10 labels'``, ``'linear'``, and ``'fine-tuned, 10 labels'``. Features are the mean
        patch token; the classifiers cosine neighbors, and logistic regression on standardized features.

    Raises:
        MissingFileError: If there is no such checkpoint or folder.
        ConfigError: If there are not two classes with two images each.
    """
    sets, options = class_folders(data, max_per_class, max_images=None), parse(FineTuning, recipe or {}, 'recipe')
    for count in finetune:
        draw_labels(np.array(sets[0].labels), count, seed=0)  # which refuses too many, before anything takes time
    encoder = checkpoint if isinstance(checkpoint, Encoder) else load_encoder(checkpoint, prefix=prefix)
    models = {'features': encoder}
    if baselines:
        models['random weights'] = with_random_weights(encoder)
    rows = {}
    for name, model in models.items():
        train, test = (_features(model, images, batch_size, num_workers) for images in sets)
        rows[name] = _accuracies(train, test, k, labels_per_class)
        rows[name] |= _finetuned(model, sets, finetune, options, draws)
    if baselines:
        train, test = (_pixels(encoder, images) for images in sets)
        rows['pixels'] = _accuracies(train, test, k, labels_per_class)
    return rows


def with_random_weights(encoder: Encoder, seed: int = 0) -> Encoder:
    """A copy of an encoder as it was before any training."""
    fresh = copy.deepcopy(encoder)
    fresh.backbone.init_cfg = None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh.backbone._is_init = False  # mmengine's: initialize again
        fresh.backbone.init_weights()
    return fresh


def _features(encoder: Encoder, images: LabeledImages, batch_size: int, num_workers: int) -> Labeled:
    found: Embeddings = embed(encoder, images.paths, None, 'mean', batch_size, num_workers, 1.0)
    label_of = dict(zip(images.paths, images.labels, strict=True))
    labels = [label_of[path] for path in found.paths]  # without those that cannot be read
    return torch.from_numpy(found.features), torch.tensor(labels)


def _finetuned(
    encoder: Encoder, sets: Sequence[LabeledImages], counts: Sequence[int], recipe: FineTuning, draws: int
) -> dict[str, float]:
    """Accuracies in percent after fine-tuning, by number of labels."""
    if not counts:
        return {}
    train, test = (_images(encoder, images) for images in sets)
    found = {}
    for count in counts:
        values = [
            finetuned_accuracy(encoder.backbone, *train, *test, labels_per_class=count, seed=seed, recipe=recipe)
            for seed in range(draws)
        ]
        found[f'fine-tuned, {_labels(count)}'] = round(100 * float(np.mean(values)), 2)
    return found


def _images(encoder: Encoder, images: LabeledImages) -> Labeled:
    """Normalized images (N, C, H, W) and labels (N,), without those that cannot be read."""
    pictures, labels = [], []
    for path, label in zip(images.paths, images.labels, strict=True):
        try:
            pictures.append(encoder.preprocess(path).cpu())
            labels.append(label)
        except (OSError, ValueError):
            continue  # logged when the features were computed
    return torch.stack(pictures), torch.tensor(labels)


def _labels(count: int) -> str:
    return f'{count} label{"s" * (count > 1)}'


def _pixels(encoder: Encoder, images: LabeledImages) -> Labeled:
    """Small pictures as vectors, (N, 32 * 32 * C)."""
    pictures, labels = _images(encoder, images)
    size = (PIXEL_SIDE, PIXEL_SIDE)
    small = torch.cat([F.interpolate(part, size, mode='bilinear', antialias=True) for part in pictures.split(256)])
    return small.flatten(1), labels


def _accuracies(train: Labeled, test: Labeled, k: int, labels_per_class: Sequence[int]) -> dict[str, float]:
    smallest = int(np.bincount(train[1].numpy()).min())
    require(smallest, 'no image of a class can be read')
    found = {'kNN': knn_accuracy(*train, *test, k=min(k, len(train[1])))}
    for count in labels_per_class:
        if count < smallest:
            found[_labels(count)] = linear_accuracy(*train, *test, labels_per_class=count)
    found['linear'] = linear_accuracy(*train, *test)
    return {name: round(100 * value, 2) for name, value in found.items()}
