"""Which patches are masked: random, block-wise, and the authors' mix of both."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from mmcv.transforms import BaseTransform

from bootmae_mm.registry import TRANSFORMS
from bootmae_mm.validation import Count, Few, PositiveShare, Share, Side, Size, patch_grid, require, validated

from .random_stream import random_stream

MAX_TRIES = 1000  # per block; then a single patch is masked, which happens only where block sizes do not fit the grid


@functools.cache
def _block(height: int, width: int, columns: int) -> int:
    """A block at the top left of a grid, as an int whose bits are the patches in row-major order."""
    return sum(((1 << width) - 1) << row * columns for row in range(height))


def block_mask(
    rng: np.random.Generator, grid: tuple[int, int], num_masked: int, min_block: int, max_block: int, min_aspect: float
) -> np.ndarray:
    """Mask exactly ``num_masked`` patches in rectangular blocks, as the authors do: bool (rows, columns)."""
    rows, columns = grid
    mask, left, tries = 0, num_masked, 0  # the mask is an int, too: much faster than slices of an array
    # Numbers in [0, 1), in chunks: a call of numpy takes longer than its draws.
    draws = itertools.chain.from_iterable(iter(lambda: rng.random((16, 4)).tolist(), None))
    for area_draw, aspect_draw, row_draw, column_draw in draws:
        largest = left if left < max_block else max_block
        side = math.sqrt(min_block + (largest - min_block) * area_draw)
        stretch = min_aspect ** (0.5 - aspect_draw)  # root of the aspect: log-uniform in [min_aspect, 1 / min_aspect]
        height, width = int(side * stretch + 0.5), int(side / stretch + 0.5)
        tries += 1
        if tries > MAX_TRIES:
            free = [patch for patch in range(rows * columns) if not mask >> patch & 1]
            mask, left, tries = mask | 1 << int(rng.choice(free)), left - 1, 0
        elif 0 < height < rows and 0 < width < columns:
            top, start = int(row_draw * (rows - height + 1)), int(column_draw * (columns - width + 1))
            new = _block(height, width, columns) << top * columns + start & ~mask
            if 0 < (count := new.bit_count()) <= largest:  # one that adds nothing, or too much, is drawn again
                mask, left, tries = mask | new, left - count, 0
        if not left:
            break
    bits = np.frombuffer(mask.to_bytes(rows * columns // 8 + 1, 'little'), np.uint8)
    return np.unpackbits(bits, count=rows * columns, bitorder='little').astype(bool).reshape(grid)


@TRANSFORMS.register_module()
class MaskSampling(BaseTransform):
    """Draws an order of the patches: the first V are kept, the other M are masked.

    ``'mix'``, the authors' way: a block mask of ``num_blocked`` patches; the visible patches in random order, then the
    block-masked ones in random order; then the order is rolled by r in 0..roll - 1 (drawn once per batch), so that r
    block-masked patches move to the front and are kept. ``'block'``: blocks only. ``'random'``: any patches.

    Args:
        grid_size: Rows and columns of patches; by default those of ``img_size`` and ``patch_size``.
        img_size: Height and width of the images in pixels.
        patch_size: Side of a patch in pixels.
        ratio: Share of patches to mask; M = round(ratio * rows * columns).
        strategy: ``'mix'``, ``'block'`` or ``'random'``.
        num_blocked: Patches in blocks under ``'mix'``; by default 120 of 196, or the same share of another grid.
        min_block: Smallest area of a block, in patches.
        max_block: Largest area of a block, in patches.
        min_aspect: Smallest height over width of a block.
        roll: Number of rolls to choose from under ``'mix'``.
        per_image: Number of masks per image, K: the teacher sees an image once for K passes of the student.
    """

    @validated
    def __init__(
        self,
        grid_size: Size | None = None,
        img_size: Size = (224, 224),
        patch_size: Side = 16,
        ratio: Share = 0.75,
        strategy: Literal['mix', 'block', 'random'] = 'mix',
        num_blocked: Count | None = None,
        min_block: Count = 16,
        max_block: Count = 60,
        min_aspect: PositiveShare = 0.3,
        roll: Count = 4,
        per_image: Few = 1,
    ) -> None:
        self.grid = grid_size or patch_grid(img_size, patch_size)
        patches = self.grid[0] * self.grid[1]
        self.num_masked, self.strategy, self.per_image = round(ratio * patches), strategy, per_image
        self.num_blocked = self.num_masked if strategy == 'block' else num_blocked or round(patches * 120 / 196)
        fits = strategy == 'random' or self.num_blocked < patches and min_block <= max_block and min(self.grid) > 1
        possible = 0 < self.num_masked < patches
        require(possible, f'0 < masked < {patches} is needed, but ratio {ratio} masks {self.num_masked} (grid_size)')
        require(fits, f'blocks need grid_size >= 2, num_blocked < {patches} and min_block <= max_block {max_block}')
        self.block: dict[str, Any] = dict(min_block=min_block, max_block=max_block, min_aspect=min_aspect)
        self.roll = roll if strategy == 'mix' else 1

    def transform(self, results: dict) -> dict:
        """Add a seed (``mask_seed``) and this (``masking``); :func:`collate` draws the masks."""
        return {**results, 'mask_seed': int(np.random.randint(2**63, dtype=np.int64)), 'masking': self}

    def keys(self, rng: np.random.Generator) -> np.ndarray:
        """Keys that sort the patches of an image, (L,): in [0, 1) for visible ones, in [1, 2) for block-masked ones."""
        keys = rng.random(self.grid[0] * self.grid[1])
        if self.strategy == 'random':
            return keys
        return keys + block_mask(rng, self.grid, self.num_blocked, **self.block).ravel()

    def batch(self, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Draw ids_keep (B * K, V) and ids_mask (B * K, M), int64, from a seed per image; the roll from the first."""
        keys = [self.keys(random_stream(seed, mask + 1)) for seed in seeds for mask in range(self.per_image)]
        orders = np.stack(keys).argsort(axis=1)  # (B * K, L)
        orders = np.roll(orders, random_stream(seeds[0], 0).integers(self.roll), axis=1)
        return orders[:, : -self.num_masked].copy(), orders[:, -self.num_masked :].copy()
