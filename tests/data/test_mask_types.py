"""Masks of other methods: their patches, shares and places."""

import numpy as np
import pytest

from bootmae_mm.data import InverseBlockSampling, UniformSampling, build_masking
from bootmae_mm.validation import ConfigError


def masks_of(masking, count=4000):
    """1 where masked, (count, rows, columns)."""
    _, ids_mask = masking.batch(range(count))
    masks = np.zeros((count, masking.grid[0] * masking.grid[1]))
    np.put_along_axis(masks, ids_mask, 1.0, axis=1)
    return masks.reshape(count, *masking.grid)


@pytest.mark.parametrize('grid', [(14, 14), (8, 8), (6, 10)])
def test_kept_patches_are_one_block(grid):
    masks = masks_of(InverseBlockSampling(grid_size=grid, ratio=0.75, roll=False), 500)
    kept = round(0.25 * grid[0] * grid[1])
    for mask in masks:
        rows, columns = np.nonzero(mask == 0)
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert len(rows) == kept
        assert 0 <= height * width - kept < width  # full but for the end of the last row
        assert 0.3 < height / width < 3


def test_aspects_of_the_block_vary():
    masks = masks_of(InverseBlockSampling(grid_size=(14, 14), roll=False))
    heights = (masks == 0).any(axis=2).sum(axis=1)
    counts = np.bincount(heights)
    assert set(np.nonzero(counts)[0]) == {5, 6, 7, 9, 10}  # sqrt(49 / 2) .. sqrt(49 * 2); 8 x 7 needs 7 rows only
    assert counts[[5, 6, 7, 9, 10]].min() > 40


def test_rolled_blocks_keep_every_patch_equally_often():
    masks = masks_of(InverseBlockSampling(grid_size=(8, 8)), 8000)
    share = 1 - masks.mean(axis=0)
    assert abs(share.mean() - 0.25) < 1e-9
    assert np.abs(share - 0.25).max() < 0.03
    without = 1 - masks_of(InverseBlockSampling(grid_size=(8, 8), roll=False)).mean(axis=0)
    assert without[4, 4] > 2 * without[0, 0]


def test_one_patch_of_every_square_is_kept():
    masking = UniformSampling(grid_size=(6, 8))
    kept = masks_of(masking, 8000) == 0
    squares = kept.reshape(-1, 3, 2, 4, 2).swapaxes(2, 3)  # (count, 3, 4, 2, 2)
    assert (squares.sum(axis=(3, 4)) == 1).all()
    assert np.abs(squares.mean(axis=0) - 0.25).max() < 0.03
    together = (squares[:, 0, 0, 0, 0] & squares[:, 1, 1, 0, 0]).mean()
    assert abs(together - 1 / 16) < 0.02  # squares are independent of each other
    assert (1 - masks_of(UniformSampling(grid_size=(6, 9), unit=3), 10).mean()) == pytest.approx(1 / 9)


@pytest.mark.parametrize('kind', [InverseBlockSampling, UniformSampling])
def test_masks_follow_from_the_seed_and_orders_are_random(kind):
    masking = kind(grid_size=(8, 8))
    first, again = masking.batch([5, 6]), masking.batch([5, 6])
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert np.array_equal(np.sort(np.concatenate(first, axis=1)), np.tile(np.arange(64), (2, 1)))
    assert not np.array_equal(first[1][0], np.sort(first[1][0]))
    several = kind(grid_size=(8, 8), per_image=3).batch([5, 6])
    assert len(several[0]) == 6 and not np.array_equal(several[1][0], several[1][1])


def test_build():
    assert build_masking(dict(grid_size=(4, 4), min_block=2, max_block=4)).strategy == 'mix'
    masking = build_masking(dict(type='bootmae_mm.InverseBlockSampling', grid_size=(4, 4)))
    assert isinstance(masking, InverseBlockSampling)
    with pytest.raises(ConfigError, match="masking must be a dict, but is 'random'"):
        build_masking('random')
    with pytest.raises(ConfigError, match="masking.type must be a MaskSampling, but is 'bootmae_mm.RandomFlip'"):
        build_masking(dict(type='bootmae_mm.RandomFlip'))
    with pytest.raises(ConfigError, match=r'a block of 36 kept patches does not fit a grid of 4 x 12: raise ratio'):
        InverseBlockSampling(grid_size=(4, 12), ratio=0.25)
    with pytest.raises(ConfigError, match='unit 2 must divide the 7 x 8 patches'):
        UniformSampling(grid_size=(7, 8))
    with pytest.raises(ConfigError, match='strategy is not a valid option'):
        build_masking(dict(type='bootmae_mm.InverseBlockSampling', strategy='mix'))
