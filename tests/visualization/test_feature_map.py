"""A map of images by their features."""

import numpy as np
import pytest
from PIL import Image

from bootmae_mm.validation import ConfigError
from bootmae_mm.visualization import draw_map


def test_images_of_a_kind_are_neighbors(tmp_path):
    rng = np.random.RandomState(0)
    kinds = np.repeat(np.arange(3), 20)
    features = 10 * np.eye(3)[kinds] + rng.randn(60, 3)
    paths = [f'images/kind {kind}/{index}.png' for index, kind in enumerate(kinds)]
    points = draw_map(features.astype(np.float32), paths, tmp_path / 'maps/map.png')
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag([np.inf] * 60)
    assert (kinds[distances.argmin(axis=1)] == kinds).mean() > 0.95
    assert Image.open(tmp_path / 'maps/map.png').size == (880, 770)
    same = draw_map(np.repeat(features[:, None], 2, axis=1).astype(np.float32), paths, tmp_path / 'tokens.svg')
    assert np.array_equal(points, same)  # the mean of the tokens, and the same seed


def test_two_images_are_no_map(tmp_path):
    with pytest.raises(ConfigError, match='at least three images, but there are 2'):
        draw_map(np.zeros((2, 4), np.float32), ['a', 'b'], tmp_path / 'map.png')
