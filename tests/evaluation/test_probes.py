"""Probes of frozen features, and the metric of pretraining."""

import numpy as np
import pytest
import torch

from bootmae_mm.evaluation import PretrainLoss, knn_accuracies, knn_accuracy, linear_accuracy, pooled_features
from bootmae_mm.validation import ConfigError
from tests.conftest import build, tiny_config


def clusters(count=60, noise=0.3):
    centers = torch.eye(3, 5) * 3
    labels = torch.arange(count) % 3
    return centers[labels] + noise * torch.randn(count, 5), labels


def test_knn_by_hand():
    train, train_labels = torch.randn(20, 4), torch.randint(0, 3, (20,))
    test, test_labels = torch.randn(30, 4), torch.randint(0, 3, (30,))
    right = 0
    for x, label in zip(test.numpy(), test_labels.tolist(), strict=True):
        cosine = [float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for y in train.numpy()]
        votes = [0.0] * 3
        for index in sorted(range(20), key=lambda i: -cosine[i])[:5]:
            votes[train_labels[index]] += np.exp(cosine[index] / 0.07)
        right += int(np.argmax(votes)) == label
    assert knn_accuracy(train, train_labels, test, test_labels, k=5) == right / 30
    for elements in (1, 7 * 20, 10000):  # one test image at a time, seven, all
        found = knn_accuracies(train, train_labels, test, test_labels, ks=(1, 5), max_elements=elements)
        assert found[5] == right / 30
        assert found[1] == knn_accuracy(train, train_labels, test, test_labels, k=1)
    for k in (0, 21):
        with pytest.raises(ConfigError, match=rf'k in 1\.\.20, but they are 0.07 and \({k},\)'):
            knn_accuracy(train, train_labels, test, test_labels, k=k)
    with pytest.raises(ConfigError, match='temperature must be positive .*, but they are 0 and'):
        knn_accuracy(train, train_labels, test, test_labels, k=1, temperature=0)


def test_near_neighbors_outvote_distant_ones():
    angles = torch.tensor([0.05, 1.0, -1.0])
    train, labels = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 1, 1])
    test = torch.tensor([[1.0, 0.0]])
    # exp(cos / 0.07) is 1.6 million for the near one and 2 * 2,200 for the others; at 10 all weigh alike.
    assert knn_accuracy(train, labels, test, torch.tensor([0]), k=3) == 1.0
    assert knn_accuracy(train, labels, test, torch.tensor([0]), k=3, temperature=10.0) == 0.0


def test_probes_distinguish_separable_from_shuffled_labels():
    train, test = clusters(), clusters()
    assert knn_accuracy(*train, *test, k=3) == linear_accuracy(*train, *test) == 1.0
    shuffled = train[1][torch.randperm(60)]
    assert linear_accuracy(train[0], shuffled, *test) < 0.7
    assert linear_accuracy(*train, *test, labels_per_class=2, seeds=range(3)) > 0.8


def test_pooled_features_are_the_mean_of_patches_before_the_norm():
    vit = build(tiny_config()).backbone
    images = torch.randn(5, 3, 32, 48)
    vit.eval()
    _, context = vit.encode_visible(images, torch.arange(24).expand(5, -1), {2})
    torch.testing.assert_close(
        pooled_features(vit, images, batch_size=2), context[2][:, 1:].mean(1), rtol=1e-4, atol=1e-5
    )


def test_metric_is_the_mean_over_images():
    metric = PretrainLoss()
    metric.process({}, [dict(pixel_loss=1.0, batch_size=3)])
    metric.process({}, [dict(pixel_loss=5.0, batch_size=1)])
    assert metric.compute_metrics(metric.results) == dict(pixel_loss=2.0)
