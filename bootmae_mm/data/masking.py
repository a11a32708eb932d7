"""Which patches are masked: random, block-wise, and the authors' mix of both."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform

from bootmae_mm.registry import TRANSFORMS
from bootmae_mm.values import integer, number, to_pair

# A block is drawn anew until it adds a patch and not too many; where block sizes and grid hardly fit each other, a
# single patch is masked after so many tries, so that the loop ends. With the paper's numbers that never happens.
MOST_TRIES = 1000
# Blocks tried at once in all images together: more would be thrown away, fewer would take more steps.
AT_ONCE = 768


def random_bits(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Random numbers as a pure function of a seed and a position (SplitMix64, Steele et al. 2014), broadcast.

    numpy's generators give one stream each, and making one for every image takes longer than drawing its mask.

    Args:
        seeds: uint64.
        positions: uint64.

    Returns:
        uint64, all 64 bits of which are random.
    """
    x = seeds + (positions + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def block_masks(
    seeds: np.ndarray,
    grid: tuple[int, int],
    num_masked: int,
    min_block: int = 16,
    max_block: int = 60,
    min_aspect: float = 0.3,
) -> np.ndarray:
    """Mask patches in rectangular blocks until exactly ``num_masked`` are masked (BEiT's way), in many images at once.

    The area of a block is uniform between ``min_block`` and the smaller of ``max_block`` and what is left to mask,
    its aspect log-uniform in [min_aspect, 1 / min_aspect], its place uniform. An image's mask follows from its seed
    alone.

    The authors' distribution. mmpretrain's ``BEiTMaskGenerator`` has another one: its ``randint`` leaves the upper
    bound out, so that no block ever touches the last row and column.

    Args:
        seeds: One for each image, uint64 (B,).
        grid: Rows and columns of patches, at most 64 each.
        num_masked: Patches to mask, in 0..rows * columns - 1.
        min_block: Smallest area of a block, in patches.
        max_block: Largest area of a block, in patches.
        min_aspect: Smallest height over width.

    Returns:
        bool array (B, rows, columns), True = masked.
    """
    rows, columns = grid
    words = _blocks_as_bits(rows, columns)[0].shape[1]
    done = np.zeros((len(seeds), words), np.uint64)

    # Of the images that are not done yet: their place in `done`, bits of masked patches, patches to mask, the position
    # in their random numbers, and tries since the last block.
    image, bits, left = np.arange(len(seeds)), done.copy(), np.full(len(seeds), num_masked, np.int32)
    position, stalled = np.zeros(len(seeds), np.uint64), np.zeros(len(seeds), np.int64)
    while True:
        active = left > 0
        if not active.all():
            done[image[~active]] = bits[~active]
            seeds, image, bits, left = seeds[active], image[active], bits[active], left[active]
            position, stalled = position[active], stalled[active]
        if not len(image):
            patches = done.view(_row_type(columns))[:, :rows, None] >> np.arange(columns, dtype=_row_type(columns))
            return (patches & 1).astype(bool)

        # Each image looks at its next blocks, and takes the first that is good: what it gets does not depend on how
        # many it looks at.
        tries = max(1, min(64, AT_ONCE // len(image)))
        positions = position[:, None] + np.arange(tries, dtype=np.uint64)
        most = np.minimum(left, max_block)
        which, turn, block = _propose(random_bits(seeds[:, None], positions), most, grid, min_block, min_aspect)
        # Column by column: numpy's sum over an axis as short as this takes several times as long.
        new = sum(np.bitwise_count(block & ~bits.take(which, axis=0)).T.astype(np.int32))

        good = np.flatnonzero((new > 0) & (new <= most.take(which)) & (stalled.take(which) + turn < MOST_TRIES))
        found = which.take(good)
        first = np.ones(len(good), dtype=bool)  # of each image; they are in order
        np.not_equal(found[1:], found[:-1], out=first[1:])
        good, found = good[first], found[first]
        bits[found] |= block[good]
        left[found] -= new[good]
        position += np.uint64(tries)
        stalled += tries
        position[found] += (turn[good] + 1 - tries).astype(np.int64).astype(np.uint64)
        stalled[found] = 0
        for stuck in np.flatnonzero(stalled >= MOST_TRIES):
            draw = random_bits(seeds[stuck : stuck + 1], position[stuck : stuck + 1])[0]
            _mask_one(bits[stuck].view(_row_type(columns)), grid, int(draw))
            left[stuck] -= 1
            position[stuck] -= np.uint64(stalled[stuck] - MOST_TRIES)  # looked at in vain
            stalled[stuck] = 0


def _propose(
    random: np.ndarray, most: np.ndarray, grid: tuple[int, int], min_block: int, min_aspect: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks of random area, aspect and place; those that are larger than the grid are left out.

    Args:
        random: Of each image and try, uint64 (B, T): 16 bits each for area, aspect, row and column.
        most: Largest area for each image, (B,).
        grid: Rows and columns of patches.
        min_block: Smallest area.
        min_aspect: Smallest height over width.

    Returns:
        For each block the image, the try, and its patches as bits (W,).
    """
    rows, columns = grid
    bands, runs = _blocks_as_bits(rows, columns)
    shares = np.float32(2**-16) * random.view(np.uint16).reshape(*random.shape, 4)
    edge = np.sqrt(min_block + (most[:, None] - min_block) * shares[..., 0])
    log_aspect = np.float32(-math.log(min_aspect))
    stretch = np.exp(log_aspect * (shares[..., 1] - np.float32(0.5)))  # the root of the aspect
    height, width = np.rint(edge * stretch).astype(np.int32), np.rint(edge / stretch).astype(np.int32)
    # Places in the flattened arrays: `take` is several times faster than an index for each axis.
    fits = np.flatnonzero((height > 0) & (height < rows) & (width > 0) & (width < columns))
    which, turn = np.divmod(fits, random.shape[1])
    height, width, shares = height.take(fits), width.take(fits), shares.reshape(-1, 4).take(fits, axis=0)
    top = (shares[:, 2] * (rows + 1 - height)).astype(np.int32)
    start = (shares[:, 3] * (columns + 1 - width)).astype(np.uint64)
    return which, turn, bands.take(height * rows + top, axis=0) & (runs.take(width) << start)[:, None]


def _mask_one(bits: np.ndarray, grid: tuple[int, int], draw: int) -> None:
    """Mask a single patch of an image that is free yet, in place: the rows' bits (P,), a random number."""
    free = [(row, column) for row in range(grid[0]) for column in range(grid[1]) if not int(bits[row]) >> column & 1]
    row, column = free[draw % len(free)]
    bits[row] |= bits.dtype.type(1 << column)


def _row_type(columns: int) -> type[np.unsignedinteger]:
    """The type of number whose bits are a row of patches; several rows lie in one word of 64 bits."""
    return next(kind for kind in (np.uint16, np.uint32, np.uint64) if columns <= np.iinfo(kind).bits)


@functools.cache
def _blocks_as_bits(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """What blocks are made of, a row of patches being the bits of a number, the rows lying in W words.

    Returns:
        For every height and top (height * rows + top) all ones in the rows of such a block, uint64 (rows * rows, W);
        for every width so many ones in each row of a word, uint64 (columns,).
    """
    kind = _row_type(columns)
    per_word = 64 // np.iinfo(kind).bits
    height, top, row = np.ogrid[:rows, :rows, : -(-rows // per_word) * per_word]
    inside = (row >= top) & (row < top + height) & (row < rows)
    bands = np.where(inside, np.iinfo(kind).max, 0).astype(kind)
    runs = np.array([[2**width - 1] * per_word for width in range(columns)], dtype=kind)
    return bands.reshape(rows * rows, -1).view(np.uint64), runs.view(np.uint64)[:, 0]


@TRANSFORMS.register_module()
class MaskSampling(BaseTransform):
    """Draws an order of the patches in which the first V are kept and the other M are masked (METHOD: masks).

    ``'mix'``, the authors' way: a block mask of ``num_blocked`` patches; visible ones first in random order, then the
    block-masked ones in random order; then the order is rolled by r in 0..roll - 1, drawn once a batch (by
    :func:`collate`, from its first image), so that r block-masked patches come to the front and are kept.
    ``'block'``: all masked patches in blocks. ``'random'``: any.

    As a step of a pipeline it only notes a seed: :func:`collate` draws the masks of a whole batch at once.

    Added keys: ``mask_seed`` (int) and ``masking`` (this).

    Args:
        grid_size: Rows and columns of patches, img_size // patch_size.
        ratio: Share of patches to mask; M = round(ratio * rows * columns).
        strategy: ``'mix'``, ``'block'`` or ``'random'``.
        num_blocked: Patches in blocks under ``'mix'``; 120 of 196, or the same share of another grid, by default.
        min_block: Smallest area of a block, in patches.
        max_block: Largest area of a block, in patches.
        min_aspect: Smallest height over width of a block.
        roll: Number of rolls to choose from under ``'mix'``.
        per_image: Masks of each image, K. More than one is another algorithm: the teacher sees an image once for K
            passes of the student, and the model's batch is K times that of the loader (set ``batch_size`` lower).

    Raises:
        ValueError: On an unknown strategy or impossible numbers.
    """

    STRATEGIES = ('mix', 'block', 'random')

    def __init__(
        self,
        grid_size: int | tuple[int, int] = 14,
        ratio: float = 0.75,
        strategy: str = 'mix',
        num_blocked: int | None = None,
        min_block: int = 16,
        max_block: int = 60,
        min_aspect: float = 0.3,
        roll: int = 4,
        per_image: int = 1,
    ) -> None:
        self.grid = to_pair(grid_size, 'grid_size')
        patches = self.grid[0] * self.grid[1]
        self.num_masked = round(number(ratio, 'ratio', least=0, most=1) * patches)
        if not 0 < self.num_masked < patches:
            raise ValueError(
                f'ratio {ratio} masks {self.num_masked} of the {patches} patches of grid_size {self.grid}; '
                f'0 < masked < {patches} is needed'
            )
        if max(self.grid) > 64:
            raise ValueError(f'grid_size must be at most 64 rows and columns, but is {self.grid}')
        if strategy not in self.STRATEGIES:
            raise ValueError(f'strategy must be one of {", ".join(self.STRATEGIES)}, but is {strategy!r}')
        if num_blocked is None:
            num_blocked = round(patches * 120 / 196)
        if strategy == 'mix':
            integer(num_blocked, 'num_blocked', 1, patches - 1)
        integer(min_block, 'min_block', least=1)
        integer(max_block, 'max_block', least=1)
        if strategy != 'random' and min_block > max_block:
            raise ValueError(f'min_block <= max_block is needed, but they are {min_block} and {max_block}')
        number(min_aspect, 'min_aspect', above=0, most=1)
        if strategy != 'random' and min(self.grid) < 2:
            raise ValueError(f'blocks need a grid_size of two rows and columns, but it is {self.grid}')
        integer(roll, 'roll', least=1)
        self.per_image = integer(per_image, 'per_image', 1, 1000)
        self.strategy = strategy
        self.num_blocked = self.num_masked if strategy == 'block' else num_blocked
        self.block: dict = dict(min_block=min_block, max_block=max_block, min_aspect=min_aspect)
        self.roll = roll if strategy == 'mix' else 1

    def transform(self, results: dict) -> dict:
        """Note the seed of the image's mask."""
        results.update(mask_seed=int(np.random.randint(2**63, dtype=np.int64)), masking=self)
        return results

    def orders(self, seeds: np.ndarray) -> np.ndarray:
        """Orders of the patches before the roll, each a pure function of its seed: uint64 (B,) -> int64 (B, L)."""
        patches = np.arange(self.grid[0] * self.grid[1], dtype=np.uint64)
        # Another stream than that of the blocks. The patch lies in the low bits: sorting numbers is faster than sorting
        # their places.
        keys = random_bits((seeds ^ np.uint64(2**63))[:, None], patches) >> np.uint64(33) << np.uint64(12) | patches
        if self.strategy != 'random':
            # The highest bit sorts masked patches behind the others.
            blocked = block_masks(seeds, self.grid, self.num_blocked, **self.block).reshape(len(seeds), -1)
            keys |= blocked.astype(np.uint64) << np.uint64(63)
        keys.sort(axis=1)
        return (keys & np.uint64(2**12 - 1)).astype(np.int64)

    def batch(self, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The masks of a batch.

        Args:
            seeds: One for each image, in 0..2**63 - 1; the roll follows from the first.

        Returns:
            ids_keep (B * K, V) and ids_mask (B * K, M), int64, the K masks of an image in succession.
        """
        numbers = np.array(seeds, dtype=np.uint64)
        if self.per_image > 1:  # the first mask is that of the seed itself
            others = random_bits(numbers[:, None], np.arange(2**33, 2**33 + self.per_image - 1, dtype=np.uint64))
            numbers = np.concatenate([numbers[:, None], others >> np.uint64(1)], axis=1).reshape(-1)
        roll = int(random_bits(numbers[:1], np.array([2**32], dtype=np.uint64))[0]) % self.roll
        orders = np.roll(self.orders(numbers), roll, axis=1)
        num_kept = orders.shape[1] - self.num_masked
        return np.ascontiguousarray(orders[:, :num_kept]), np.ascontiguousarray(orders[:, num_kept:])

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(grid={self.grid}, num_masked={self.num_masked}, strategy={self.strategy!r}, '
            f'num_blocked={self.num_blocked}, {self.block}, roll={self.roll}, per_image={self.per_image})'
        )
