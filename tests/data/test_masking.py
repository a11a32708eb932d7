import math
import random
import zlib

import numpy as np
import pytest

from bootmae_mm.data.masking import MOST_TRIES, MaskSampling, block_masks, random_bits

SEEDS = random_bits(np.arange(3000, dtype=np.uint64), np.zeros(1, dtype=np.uint64))


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
    """Share masked of every place, and share of masked right neighbours of masked patches (blockiness)."""
    masks = np.stack(masks)
    both = (masks[:, :, 1:] & masks[:, :, :-1]).sum(axis=(1, 2)) / masks[:, :, :-1].sum(axis=(1, 2))
    return masks.mean(axis=0), both.mean(), both.std()


def test_block_masks_have_the_authors_distribution():
    random.seed(0)
    count = 3000
    fast = list(block_masks(SEEDS, (14, 14), 120))
    slow = [slow_block_mask(14, 14, 120, 16, 60, 0.3) for _ in range(count)]
    assert all(mask.sum() == 120 for mask in fast)
    (places, blocky, spread), (wanted, wanted_blocky, wanted_spread) = statistics(fast), statistics(slow)
    # Standard error of a share near 0.6 over 3,000 draws is 0.009, of a difference 0.0126: 5 of them for 196 places.
    assert np.abs(places - wanted).max() < 0.063
    assert abs(places - wanted).mean() < 0.0126
    assert abs(blocky - wanted_blocky) < 5 * wanted_spread * (2 / count) ** 0.5
    assert abs(spread / wanted_spread - 1) < 0.1
    assert blocky > 0.78  # of random masks it would be 0.61
    # mmpretrain's generator leaves the last row and column always visible; the authors' does not.
    assert places[-1].mean() > 0.9 * places[0].mean()


@pytest.mark.parametrize(('grid', 'masked'), [((4, 6), 15), ((2, 2), 3), ((3, 9), 1), ((14, 14), 195)])
def test_block_masks_of_any_grid_are_exact_and_end(grid, masked):
    masks = block_masks(SEEDS[:20], grid, masked, min_block=4, max_block=9)
    assert masks.shape == (20, *grid) and (masks.sum(axis=(1, 2)) == masked).all()


@pytest.mark.parametrize(('grid', 'masked'), [((14, 14), 120), ((3, 9), 20), ((20, 40), 600), ((64, 64), 3000)])
def test_a_mask_does_not_depend_on_the_others_of_its_batch(grid, masked, monkeypatch):
    together = block_masks(SEEDS[:40], grid, masked, min_block=9, max_block=30)
    for index in (0, 7, 39):
        assert (block_masks(SEEDS[index : index + 1], grid, masked, min_block=9, max_block=30) == together[index]).all()
    monkeypatch.setattr('bootmae_mm.data.masking.AT_ONCE', 100)
    assert (block_masks(SEEDS[:40], grid, masked, min_block=9, max_block=30) == together).all()
    assert len({mask.tobytes() for mask in together}) > 20


def test_blocks_that_hardly_fit_end_in_single_patches():
    # Blocks of 4 or more patches, but a last patch to mask: never a block that is good, for none covers what is masked.
    masks = block_masks(SEEDS[:5], (2, 3), 5, min_block=1, max_block=1)
    assert (masks.sum(axis=(1, 2)) == 5).all() and MOST_TRIES == 1000


def test_random_bits_are_those_of_splitmix64():
    # First outputs for seed 1234567, from the reference program in C (Vigna, prng.di.unimi.it/splitmix64.c).
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert random_bits(np.array([1234567], np.uint64), np.arange(5, dtype=np.uint64)).tolist() == wanted


def orders(**options):
    sampling = MaskSampling(**options)
    return sampling, sampling.orders(SEEDS[:200])


def test_mix_keeps_visible_patches_first_then_blocks():
    sampling, drawn = orders(grid_size=14, strategy='mix')
    assert sampling.num_masked == 147 and sampling.roll == 4
    assert (np.sort(drawn, axis=1) == np.arange(196)).all()
    blocked = np.zeros((200, 196), dtype=bool)
    np.put_along_axis(blocked, drawn[:, -120:], True, axis=1)  # the end of the order is the block mask
    blocked = blocked.reshape(-1, 14, 14)
    assert (blocked == block_masks(SEEDS[:200], (14, 14), 120)).all()
    # Both parts are in random order: the mean place of a patch in its part does not depend on its index.
    for part in (drawn[:, :76], drawn[:, 76:]):
        places = np.argsort(part, axis=1).mean(axis=0) / part.shape[1]
        assert np.abs(places - 0.5).max() < 5 * 0.29 / 200**0.5


def test_a_batch_is_rolled_as_one():
    sampling = MaskSampling(grid_size=14, strategy='mix')
    rolls = set()
    for start in range(40):
        seeds = SEEDS[start : start + 3] >> np.uint64(1)
        ids_keep, ids_mask = sampling.batch(seeds.tolist())
        assert ids_keep.shape == (3, 49) and ids_mask.shape == (3, 147) and ids_keep.dtype == ids_mask.dtype == np.int64
        order = sampling.orders(seeds)
        together = np.concatenate([ids_keep, ids_mask], axis=1)
        (roll,) = [r for r in range(4) if (np.roll(order, r, axis=1) == together).all()]
        # The first patches kept are the last of the block mask.
        assert (ids_keep[:, :roll] == order[:, 196 - roll :]).all()
        rolls.add(roll)
    assert rolls == {0, 1, 2, 3}


def test_random_masks_are_uniform():
    sampling, drawn = orders(grid_size=(4, 6), ratio=0.5, strategy='random')
    assert sampling.roll == 1
    first = np.bincount(drawn[:, 0], minlength=24)
    assert first.max() < 25  # 200 / 24 = 8.3 on average
    assert len({tuple(order) for order in drawn}) == 200


def test_block_strategy_masks_in_blocks_only():
    sampling, drawn = orders(grid_size=14, strategy='block')
    assert sampling.num_blocked == 147 and sampling.roll == 1
    masks = np.zeros((200, 196), dtype=bool)
    np.put_along_axis(masks, drawn[:, 49:], True, axis=1)
    assert statistics(masks.reshape(-1, 14, 14))[1] > 0.84  # of random masks it would be 0.75


def test_several_masks_of_an_image_start_with_its_own():
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
    assert zlib.crc32(np.concatenate([kept, masked], axis=1).astype('<i8').tobytes()) == 4147969313


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(ratio=0.0), '0 < masked'),
        (dict(ratio=1.0), '0 < masked'),
        (dict(grid_size=(2, 2), ratio=0.05), '0 < masked'),
        (dict(strategy='stripes'), 'strategy'),
        (dict(num_blocked=196), 'num_blocked'),
        (dict(min_block=9, max_block=4), 'min_block'),
        (dict(per_image=0), 'per_image must be an int in 1..1000'),
        (dict(roll=0), 'roll'),
        (dict(grid_size=(1, 8)), 'two rows'),
        (dict(grid_size=0), 'grid_size'),
        (dict(grid_size=(8, 65)), 'at most 64'),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        MaskSampling(**options)
