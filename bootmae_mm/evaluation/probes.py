"""Probes of frozen features: k nearest neighbors and a linear classifier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bootmae_mm.validation import require

from .finetuning import draw_labels


@torch.no_grad()
def pooled_features(backbone: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Mean of the patch tokens after the last block, before the final norm.

    Args:
        backbone: A :class:`BootMAEViT`.
        images: Normalized images, (N, C, H, W).
        batch_size: Number of images at a time.

    Returns:
        Tensor (N, D), float32, on the CPU.
    """
    backbone.eval()
    all_ids = torch.arange(backbone.grid_size[0] * backbone.grid_size[1], device=images.device)
    features = []
    for batch in images.split(batch_size):
        tokens = backbone.encode_patches(batch, all_ids.expand(len(batch), -1))  # (B, L, D)
        features.append(tokens.mean(dim=1).float().cpu())
    return torch.cat(features)


def knn_accuracies(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    ks: Sequence[int] = (5, 10, 20),
    temperature: float = 0.07,
    max_elements: int = 2**26,
) -> dict[int, float]:
    """Accuracy of a weighted vote of the k nearest neighbors by cosine, for several k at once.

    A neighbor's vote weighs exp(cosine / temperature). Source: the protocol of Wu et al. 2018 (arXiv 1805.01978).

    Args:
        train: (N, D).
        train_labels: (N,), int64.
        test: (K, D).
        test_labels: (K,), int64.
        ks: Numbers of neighbors, each at most N.
        temperature: Temperature of the votes.
        max_elements: Largest number of cosines at a time (by default a quarter of a GiB).

    Returns:
        k -> share of correctly classified test images, in 0..1.

    Raises:
        ConfigError: If a k is not in 1..N, or the temperature is not positive.
    """
    require(
        temperature > 0 and all(1 <= k <= len(train) for k in ks),
        f'temperature must be positive and k in 1..{len(train)}, but they are {temperature} and {ks}',
    )
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    train, test = F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1)
    right = dict.fromkeys(ks, 0)
    batch_size = max(1, max_elements // len(train))
    for features, labels in zip(test.split(batch_size), test_labels.split(batch_size), strict=True):
        cosine, nearest = (features @ train.T).topk(max(ks), dim=1)
        for k in ks:
            votes = torch.zeros(len(features), classes, device=features.device)
            votes.scatter_add_(1, train_labels[nearest[:, :k]], (cosine[:, :k] / temperature).exp())
            right[k] += int((votes.argmax(dim=1) == labels).sum())
    return {k: count / len(test) for k, count in right.items()}


def knn_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 10, temperature: float = 0.07
) -> float:
    """:func:`knn_accuracies` for one k."""
    return knn_accuracies(train, train_labels, test, test_labels, (k,), temperature)[k]


def linear_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    labels_per_class: int | None = None,
    seeds: Sequence[int] = range(5),
) -> float:
    """Accuracy of logistic regression on standardized features (scikit-learn's, C = 1).

    Args:
        train: (N, D).
        train_labels: (N,), int64.
        test: (K, D).
        test_labels: (K,), int64.
        labels_per_class: Number of labels per class to use, drawn with each seed; all by default.
        seeds: Seeds of the draws to average.

    Returns:
        Share of correctly classified test images, in 0..1.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, labels = train.numpy(), train_labels.numpy(), test_labels.numpy()
    scores = []
    for seed in seeds if labels_per_class else [0]:  # nothing to draw with all labels
        chosen = draw_labels(y, labels_per_class, seed)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        classifier.fit(x[chosen], y[chosen])
        scores.append(float((classifier.predict(test.numpy()) == labels).mean()))
    return float(np.mean(scores))


def ridge_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, strength: float = 0.01
) -> float:
    """Accuracy of a linear classifier fitted in one step: ridge regression of the labels on standardized features.

    Args:
        train: (N, D).
        train_labels: (N,), int64.
        test: (K, D).
        test_labels: (K,), int64.
        strength: Weight of the squared coefficients over that of the mean squared error.

    Returns:
        Share of correctly classified test images, in 0..1.
    """
    mean, std = train.double().mean(dim=0), train.double().std(dim=0).clamp(min=1e-8)
    x, y = (train.double() - mean) / std, F.one_hot(train_labels).double()  # (N, D), (N, classes)
    penalty = strength * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(x.T @ x + penalty, x.T @ (y - y.mean(dim=0)))  # (D, classes)
    scores = (test.double() - mean) / std @ weights + y.mean(dim=0)  # (K, classes)
    return float((scores.argmax(dim=1) == test_labels).double().mean())
