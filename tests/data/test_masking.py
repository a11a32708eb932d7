"""Masks: their distribution is that of the authors, and each depends on its own seed only."""

import math
import random
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from bootmae_mm.data.masking import MAX_TRIES, MaskSampling, block_mask
from bootmae_mm.validation import ConfigError

PAPER = dict(min_block=16, max_block=60, min_aspect=0.3)


def masks_of(seeds, grid, num_masked, **options):
    """One mask per seed, (B, rows, columns)."""
    options = {**PAPER, **options}
    return np.stack([block_mask(np.random.default_rng(seed), grid, num_masked, **options) for seed in seeds])


def slow_block_mask(rows, columns, num_masked, smallest, largest, aspect):
    """The authors' generator, cell by cell, written independently of the package."""
    mask = [[0] * columns for _ in range(rows)]
    count = 0
    while count < num_masked:
        most = min(num_masked - count, largest)
        area = random.uniform(smallest, most)
        ratio = math.exp(random.uniform(math.log(aspect), math.log(1 / aspect)))
        height, width = int(round(math.sqrt(area * ratio))), int(round(math.sqrt(area / ratio)))
        if not (height < rows and width < columns):
            continue
        top, left = random.randint(0, rows - height), random.randint(0, columns - width)
        cells = [(i, j) for i in range(top, top + height) for j in range(left, left + width) if not mask[i][j]]
        if 0 < len(cells) <= most:
            for i, j in cells:
                mask[i][j] = 1
            count += len(cells)
    return np.array(mask, dtype=bool)


def statistics(masks):
    """Share masked of every position; mean and std of the share of masked right neighbors of masked patches."""
    masks = np.stack(masks)
    both = (masks[:, :, 1:] & masks[:, :, :-1]).sum(axis=(1, 2)) / masks[:, :, :-1].sum(axis=(1, 2))
    return masks.mean(axis=0), both.mean(), both.std()


def test_block_masks_have_the_authors_distribution():
    random.seed(0)
    count = 3000
    fast = masks_of(range(count), (14, 14), 120)
    slow = [slow_block_mask(14, 14, 120, 16, 60, 0.3) for _ in range(count)]
    assert all(mask.sum() == 120 for mask in fast)
    (places, blocky, spread), (wanted, wanted_blocky, wanted_spread) = statistics(fast), statistics(slow)
    # The standard error of a share near 0.6 over 3,000 draws is 0.009, that of a difference 0.0126; the largest of 196
    # differences may be 5 of them.
    assert np.abs(places - wanted).max() < 0.063
    assert abs(places - wanted).mean() < 0.0126
    assert abs(blocky - wanted_blocky) < 5 * wanted_spread * (2 / count) ** 0.5
    assert abs(spread / wanted_spread - 1) < 0.1
    assert blocky > 0.78  # random masks would have 0.61
    # mmpretrain's generator leaves the last row and column always visible; the authors' does not.
    assert places[-1].mean() > 0.9 * places[0].mean()


@pytest.mark.parametrize(
    ('grid', 'masked', 'min_block', 'max_block', 'min_aspect'),
    [
        ((8, 15), 70, 6, 25, 0.5),
        ((4, 5), 11, 4, 9, 0.2),  # many blocks are as high or as wide as the grid
        ((9, 9), 50, 12, 12, 0.3),  # blocks often exceed max_block, as their sides are rounded
    ],
)
def test_block_masks_of_other_grids_have_the_authors_distribution(grid, masked, min_block, max_block, min_aspect):
    random.seed(0)
    count = 3000
    fast = masks_of(range(count), grid, masked, min_block=min_block, max_block=max_block, min_aspect=min_aspect)
    slow = [slow_block_mask(*grid, masked, min_block, max_block, min_aspect) for _ in range(count)]
    (places, blocky, spread), (wanted, wanted_blocky, wanted_spread) = statistics(fast), statistics(slow)
    assert np.abs(places - wanted).max() < 5 * 0.5 * (2 / count) ** 0.5
    assert abs(places - wanted).mean() < 0.5 * (2 / count) ** 0.5
    assert abs(blocky - wanted_blocky) < 5 * wanted_spread * (2 / count) ** 0.5
    assert abs(spread / wanted_spread - 1) < 0.1


class CountingGenerator:
    """A random generator that counts calls of ``choice``, which draws single patches."""

    def __init__(self, seed):
        self.rng, self.choices = np.random.default_rng(seed), 0

    def random(self, shape):
        return self.rng.random(shape)

    def choice(self, free):
        self.choices += 1
        return self.rng.choice(free)


def test_block_masks_of_a_large_grid_have_the_authors_distribution():
    random.seed(0)
    count = 60
    fast = masks_of(range(count), (70, 100), 4200)
    slow = [slow_block_mask(70, 100, 4200, 16, 60, 0.3) for _ in range(count)]
    (places, blocky, _), (wanted, wanted_blocky, wanted_spread) = statistics(fast), statistics(slow)
    for axis in (0, 1):  # rows and columns beyond the 64th included; patches at the border are masked less often
        assert np.abs(places.mean(axis) - wanted.mean(axis)).max() < 0.1
    assert abs(blocky - wanted_blocky) < 5 * wanted_spread * (2 / count) ** 0.5
    assert blocky > 0.85  # random masks would have 0.6


@pytest.mark.parametrize(
    ('grid', 'masked'),
    [((4, 6), 15), ((2, 2), 3), ((3, 9), 1), ((14, 14), 195), ((2, 70), 100), ((64, 65), 3000), ((90, 130), 8000)],
)
def test_block_masks_of_any_grid_are_exact_and_end(grid, masked):
    masks = masks_of(range(20), grid, masked, min_block=4, max_block=9)
    assert masks.shape == (20, *grid) and masks.dtype == bool and (masks.sum(axis=(1, 2)) == masked).all()
    assert len({mask.tobytes() for mask in masks}) > 1


@pytest.mark.parametrize(('grid', 'ratio'), [((14, 14), 0.61), ((3, 9), 0.75), ((20, 40), 0.75), ((66, 64), 0.75)])
@pytest.mark.parametrize('strategy', ['mix', 'block', 'random'])
def test_a_mask_does_not_depend_on_the_rest_of_the_batch(grid, ratio, strategy):
    sampling = MaskSampling(grid_size=grid, ratio=ratio, strategy=strategy, min_block=9, max_block=30, roll=1)
    seeds = [7, 2**63 - 1, *range(1000, 1038)]
    together = sampling.batch(seeds)
    for index in (0, 1, 39):
        for ids, alone in zip(together, sampling.batch(seeds[index : index + 1]), strict=True):
            np.testing.assert_array_equal(ids[index], alone[0])
    for ids, reverse in zip(together, sampling.batch(seeds[::-1]), strict=True):
        np.testing.assert_array_equal(ids, reverse[::-1])
    assert len({tuple(ids) for ids in together[1]}) > 20


def test_blocks_that_never_fit_end_in_single_patches():
    """In two rows, only blocks of one row fit: never a square one of 9 patches."""
    for seed in range(5):
        rng = CountingGenerator(seed)
        mask = block_mask(rng, (2, 9), 17, min_block=9, max_block=9, min_aspect=1.0)
        assert mask.sum() == 17 and rng.choices >= 8
    assert MAX_TRIES == 1000


def test_tries_are_counted_for_each_block(monkeypatch):
    """A large grid needs more tries in total than a block may have, but no block needs all of its own."""
    monkeypatch.setattr('bootmae_mm.data.masking.MAX_TRIES', 150)
    for seed in range(3):
        rng = CountingGenerator(seed)
        assert block_mask(rng, (120, 120), 7000, **PAPER).sum() == 7000
        assert rng.choices == 0


def test_blocks_of_given_draws():
    """A block that is too large, one that fits, the same again, which adds nothing, and one in the last corner."""
    tries = [(1.7, 0.0, 0.0), (4 / 3, 0.0, 0.0), (4 / 3, 0.0, 0.0), (3 / 4, 0.999, 0.999)]  # 5 x 3, 4 x 3, 3 x 4
    draws = [[0.5, (1 - math.log(aspect) / math.log(0.3)) / 2, row, column] for aspect, row, column in tries]
    rng = SimpleNamespace(random=lambda shape: np.array(draws))
    wanted = np.zeros((10, 12), dtype=bool)
    wanted[:4, :3] = wanted[7:, 8:] = True
    np.testing.assert_array_equal(block_mask(rng, (10, 12), 24, min_block=12, max_block=12, min_aspect=0.3), wanted)


def test_single_patches_are_uniform(monkeypatch):
    monkeypatch.setattr('bootmae_mm.data.masking.MAX_TRIES', 0)
    masks = masks_of(range(2000), (4, 6), 12)
    assert (masks.sum(axis=(1, 2)) == 12).all()
    assert np.abs(masks.mean(axis=0) - 0.5).max() < 5 * 0.5 / 2000**0.5


def orders(count, **options):
    """Orders of the patches before a roll, from the seeds 0..count - 1."""
    sampling = MaskSampling(**{**options, 'roll': 1})
    return sampling, np.concatenate(sampling.batch(range(count)), axis=1)


def ends(orders, length, grid):
    """The last patches of each order as masks, (B, rows, columns)."""
    masks = np.zeros(orders.shape, dtype=bool)
    np.put_along_axis(masks, orders[:, -length:], True, axis=1)
    return masks.reshape(-1, *grid)


def test_mix_keeps_visible_patches_first_then_blocks():
    random.seed(0)
    count = 3000
    sampling, drawn = orders(count, grid_size=14, strategy='mix')
    assert sampling.num_masked == 147 and sampling.num_blocked == 120 and MaskSampling().roll == 4
    assert (np.sort(drawn, axis=1) == np.arange(196)).all()
    # The end of the order is a block mask of the authors' distribution.
    places, blocky, spread = statistics(ends(drawn, 120, (14, 14)))
    slow = [slow_block_mask(14, 14, 120, 16, 60, 0.3) for _ in range(count)]
    wanted, wanted_blocky, wanted_spread = statistics(slow)
    assert np.abs(places - wanted).max() < 0.063
    assert abs(blocky - wanted_blocky) < 5 * wanted_spread * (2 / count) ** 0.5
    assert abs(spread / wanted_spread - 1) < 0.1
    # Both parts are in random order: the mean position of a patch in its part does not depend on its index.
    for part in (drawn[:, :76], drawn[:, 76:]):
        positions = (np.argsort(part, axis=1) + 0.5).mean(axis=0) / part.shape[1]
        assert np.abs(positions - 0.5).max() < 5 * (1 / 12) ** 0.5 / count**0.5


def test_a_batch_is_rolled_together():
    sampling, unrolled = MaskSampling(), MaskSampling(roll=1)
    rolls = []
    for start in range(200):
        seeds = [start, start + 1, 2**63 - 1 - start]
        ids_keep, ids_mask = sampling.batch(seeds)
        assert ids_keep.shape == (3, 49) and ids_mask.shape == (3, 147) and ids_keep.dtype == ids_mask.dtype == np.int64
        assert ids_keep.flags.c_contiguous and ids_mask.flags.c_contiguous
        order = np.concatenate(unrolled.batch(seeds), axis=1)
        together = np.concatenate([ids_keep, ids_mask], axis=1)
        (roll,) = [r for r in range(4) if (np.roll(order, r, axis=1) == together).all()]
        # The first patches kept are the last of the block mask.
        assert (ids_keep[:, :roll] == order[:, 196 - roll :]).all()
        rolls.append(roll)
    counts = np.bincount(rolls, minlength=4)
    assert len(counts) == 4 and np.abs(counts - 50).max() < 5 * (200 * 0.25 * 0.75) ** 0.5


def test_the_roll_follows_from_the_first_image():
    sampling = MaskSampling(grid_size=14)
    for first in range(20):
        for ids, others in zip(sampling.batch([first, 100]), sampling.batch([first, 200, 300]), strict=True):
            np.testing.assert_array_equal(ids[0], others[0])


def test_random_masks_are_uniform():
    sampling, drawn = orders(1000, grid_size=(4, 6), ratio=0.5, strategy='random')
    assert sampling.num_masked == 12
    assert len({tuple(order) for order in drawn}) == 1000
    for position in (0, 11, 12, 23):  # every patch is at every position equally often: 1000 / 24 = 41.7 times
        counts = np.bincount(drawn[:, position], minlength=24)
        assert np.abs(counts - 1000 / 24).max() < 5 * (1000 / 24) ** 0.5
    assert np.abs(ends(drawn, 12, (4, 6)).mean(axis=0) - 0.5).max() < 5 * 0.5 / 1000**0.5


def test_block_strategy_masks_in_blocks_only():
    random.seed(0)
    count = 1000
    sampling, drawn = orders(count, grid_size=14, strategy='block')
    assert sampling.num_blocked == 147
    places, blocky, _ = statistics(ends(drawn, 147, (14, 14)))
    slow = [slow_block_mask(14, 14, 147, 16, 60, 0.3) for _ in range(count)]
    wanted, wanted_blocky, wanted_spread = statistics(slow)
    assert np.abs(places - wanted).max() < 5 * 0.5 * (2 / count) ** 0.5
    assert abs(blocky - wanted_blocky) < 5 * wanted_spread * (2 / count) ** 0.5
    assert blocky > 0.84  # random masks would have 0.75


def test_only_mix_is_rolled():
    assert [MaskSampling(strategy=strategy).roll for strategy in ('mix', 'block', 'random')] == [4, 1, 1]


def test_several_masks_per_image_start_with_the_only_one():
    one, three = MaskSampling(roll=1), MaskSampling(roll=1, per_image=3)
    seeds = [5, 2**63 - 1]
    kept, masked = three.batch(seeds)
    assert kept.shape == (6, 49) and masked.shape == (6, 147)
    np.testing.assert_array_equal(masked[::3], one.batch(seeds)[1])
    assert len({tuple(sorted(ids)) for ids in masked}) == 6
    np.testing.assert_array_equal(masked[3:], three.batch(seeds[1:])[1])


def test_masks_stay_the_same_from_release_to_release():
    """A run that is resumed with a newer version sees the masks that it would have seen."""
    kept, masked = MaskSampling().batch(range(64))
    assert zlib.crc32(np.concatenate([kept, masked], axis=1).astype('<i8').tobytes()) == 100598505


@pytest.mark.parametrize(
    ('options', 'grid'),
    [
        (dict(), (14, 14)),
        (dict(img_size=(224, 384)), (14, 24)),
        (dict(img_size=(224, 384), patch_size=32), (7, 12)),
        (dict(img_size=1120), (70, 70)),
        (dict(grid_size=(4, 6)), (4, 6)),
        (dict(grid_size=(4, 6), img_size=224), (4, 6)),
        (dict(grid_size=(128, 4)), (128, 4)),
    ],
)
def test_the_grid_follows_from_the_sizes_of_image_and_patch(options, grid):
    sampling = MaskSampling(**options)
    patches = grid[0] * grid[1]
    assert sampling.grid == grid
    assert sampling.num_masked == round(0.75 * patches) and sampling.num_blocked == round(patches * 120 / 196)
    kept, masked = sampling.batch([3])
    assert (np.sort(np.concatenate([kept, masked], axis=1)) == np.arange(patches)).all()


def test_as_a_step_of_a_pipeline_it_adds_a_seed():
    sampling = MaskSampling()
    sample = dict(img=1)
    np.random.seed(4)
    results = [sampling(sample) for _ in range(200)]
    seeds = [result['mask_seed'] for result in results]
    assert all(result['masking'] is sampling and result['img'] == 1 for result in results) and sample == dict(img=1)
    assert len(set(seeds)) == 200 and all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    np.random.seed(4)
    assert sampling(sample)['mask_seed'] == seeds[0]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(ratio=0.0), '0 < masked'),
        (dict(ratio=1.0), '0 < masked'),
        (dict(ratio=1.5), 'ratio must be less than or equal to 1'),
        (dict(grid_size=(2, 2), ratio=0.05), '0 < masked'),
        (dict(strategy='stripes'), "strategy must be 'mix', 'block' or 'random', but is 'stripes'"),
        (dict(num_blocked=196), 'num_blocked'),
        (dict(num_blocked=0), 'num_blocked must be greater than or equal to 1'),
        (dict(min_block=9, max_block=4), 'min_block'),
        (dict(min_aspect=0), 'min_aspect must be greater than 0'),
        (dict(min_aspect=1.1), 'min_aspect must be less than or equal to 1'),
        (dict(per_image=0), 'per_image must be greater than or equal to 1'),
        (dict(per_image=1001), 'per_image must be less than or equal to 1000'),
        (dict(roll=0), 'roll must be greater than or equal to 1'),
        (dict(grid_size=(1, 8)), 'blocks need .*grid_size'),
        (dict(grid_size=0), 'grid_size.0 must be greater than or equal to 1'),
        (dict(img_size=225), 'img_size 225x225 must be divisible by patch_size 16'),
        (dict(patch_size=0), 'patch_size must be greater than or equal to 1'),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ConfigError, match=message):
        MaskSampling(**options)


def test_options_of_blocks_do_not_limit_random_masks():
    sampling = MaskSampling(grid_size=(1, 8), ratio=0.5, strategy='random', min_block=9, max_block=4)
    assert sampling.batch([1])[1].shape == (1, 4)
