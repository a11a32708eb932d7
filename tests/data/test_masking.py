import math
import random

import numpy as np
import pytest

from bootmae_mm.data.masking import MaskSampling, block_mask


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
    fast = [block_mask((14, 14), 120) for _ in range(count)]
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
    for _ in range(20):
        mask = block_mask(grid, masked, min_block=4, max_block=9)
        assert mask.shape == grid and mask.sum() == masked


def orders(**options):
    sampling = MaskSampling(**options)
    return sampling, [sampling({}) for _ in range(200)]


def test_mix_keeps_visible_patches_first_then_blocks():
    sampling, drawn = orders(grid_size=14, strategy='mix')
    assert sampling.num_masked == 147
    assert {sample['mask_roll'] for sample in drawn} == {0, 1, 2, 3}
    blockiness = []
    for sample in drawn:
        order = sample['mask_order']
        assert sorted(order.tolist()) == list(range(196))
        blocked = np.zeros(196, dtype=bool)
        blocked[order[-120:]] = True  # the end of the order is the block mask
        blocked = blocked.reshape(14, 14)
        blockiness.append((blocked[:, 1:] & blocked[:, :-1]).sum() / blocked[:, :-1].sum())
    assert np.mean(blockiness) > 0.78


def test_random_masks_are_uniform():
    _, drawn = orders(grid_size=(4, 6), ratio=0.5, strategy='random')
    assert {sample['mask_roll'] for sample in drawn} == {0}
    first = np.bincount([int(sample['mask_order'][0]) for sample in drawn], minlength=24)
    assert first.max() < 25  # 200 / 24 = 8.3 on average
    assert len({tuple(sample['mask_order']) for sample in drawn}) == 200


def test_block_strategy_masks_in_blocks_only():
    sampling, drawn = orders(grid_size=14, strategy='block')
    assert sampling.num_blocked == 147 and {sample['mask_roll'] for sample in drawn} == {0}
    masks = []
    for sample in drawn:
        mask = np.zeros(196, dtype=bool)
        mask[sample['mask_order'][49:]] = True
        masks.append(mask.reshape(14, 14))
    assert statistics(masks)[1] > 0.84  # of random masks it would be 0.75


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(ratio=0.0), '0 < masked'),
        (dict(ratio=1.0), '0 < masked'),
        (dict(grid_size=(2, 2), ratio=0.05), '0 < masked'),
        (dict(strategy='stripes'), 'strategy'),
        (dict(num_blocked=196), 'num_blocked'),
        (dict(min_block=9, max_block=4), 'min_block'),
        (dict(roll=0), 'roll'),
        (dict(grid_size=(1, 8)), 'two rows'),
        (dict(grid_size=0), 'grid_size'),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        MaskSampling(**options)
