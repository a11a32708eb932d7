"""Fine-tuning on a few labels."""

import numpy as np
import pytest
import torch

from bootmae_mm.evaluation import FineTuning, finetuned_accuracy
from bootmae_mm.evaluation.finetuning import _augmented, _share_of_lr, draw_labels
from bootmae_mm.validation import ConfigError, parse

SIZE = (32, 48)


def stripes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with horizontal or vertical stripes, (N, 3, 32, 48), and which of both."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = 0.3 * torch.randn(count, 3, *SIZE, generator=generator)
    images[labels == 0, :, ::2] += 1
    images[labels == 1, :, :, ::2] += 1
    return images, labels


def test_an_encoder_learns_from_few_labels_and_is_not_changed(model):
    encoder = model.backbone
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    train, test = stripes(40, 0), stripes(64, 1)
    recipe = FineTuning(steps=30, batch_size=16, lr=3e-3)
    options = dict(labels_per_class=8, recipe=recipe)
    first = finetuned_accuracy(encoder, *train, *test, **options)
    assert first > 0.9
    assert finetuned_accuracy(encoder, *train, *test, **options) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    # With wrong labels for the test it is as wrong as it was right.
    assert finetuned_accuracy(encoder, *train, test[0], 1 - test[1], **options) == pytest.approx(1 - first)


def test_labels_are_drawn_of_each_class():
    labels = np.repeat([0, 1, 2], [3, 5, 9])
    chosen = draw_labels(labels, 3, seed=1)
    assert sorted(labels[chosen]) == [0] * 3 + [1] * 3 + [2] * 3 and len(set(chosen)) == 9
    assert list(chosen) != list(draw_labels(labels, 3, seed=2))
    assert list(draw_labels(labels, None, 0)) == list(range(17))
    with pytest.raises(ConfigError, match='4 labels of each class, but one has 3 images'):
        draw_labels(labels, 4, seed=0)


def test_images_are_shifted_by_at_most_their_share():
    images = torch.zeros(200, 1, 16, 32)
    images[:, :, 8, 16] = 1
    places = torch.nonzero(_augmented(images, FineTuning(shift=1 / 16)))
    assert len(places) == 200
    assert set(places[:, 2].tolist()) == {7, 8, 9} and set(places[:, 3].tolist()) == {14, 15, 16, 17, 18}
    moved = _augmented(images - 5, FineTuning(shift=1 / 16))
    assert moved.min() == -5 and moved.max() == -4  # the border is filled with the lowest value
    assert torch.equal(_augmented(images, FineTuning(shift=0.0)), images)
    left = torch.zeros(200, 1, 16, 32)
    left[..., 0] = 1
    flipped = _augmented(left, FineTuning(shift=0.0, flip=True))[:, 0, 0, -1]
    assert 60 < flipped.sum() < 140 and set(flipped.tolist()) == {0, 1}


def test_the_lr_rises_and_falls():
    shares = [_share_of_lr(step, 100) for step in range(100)]
    assert shares[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert shares[10] == 1 and shares[55] == pytest.approx(0.5) and shares[99] < 0.001


def test_a_wrong_recipe():
    with pytest.raises(ConfigError, match='recipe has unknown option'):
        parse(FineTuning, dict(step=5), 'recipe')
    with pytest.raises(ConfigError, match='recipe.lr must be greater than 0'):
        parse(FineTuning, dict(lr=0.0), 'recipe')
