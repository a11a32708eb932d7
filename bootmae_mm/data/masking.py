"""Which patches are masked: random, block-wise, and the authors' mix of both."""

from __future__ import annotations

import math
import random

import numpy as np
from mmcv.transforms import BaseTransform

from bootmae_mm.registry import TRANSFORMS

from ..models.tokens import to_pair

# A block is drawn anew until it adds a patch and not too many; where block sizes and grid hardly fit each other, a
# single patch is masked after so many tries, so that the loop ends. With the paper's numbers that never happens.
MOST_TRIES = 1000


def block_mask(
    grid: tuple[int, int], num_masked: int, min_block: int = 16, max_block: int = 60, min_aspect: float = 0.3
) -> np.ndarray:
    """Mask patches in rectangular blocks until exactly ``num_masked`` are masked (BEiT's way).

    The area of a block is uniform between ``min_block`` and the smaller of ``max_block`` and what is left to mask,
    its aspect log-uniform in [min_aspect, 1 / min_aspect], its place uniform. Drawn from Python's ``random``.

    The authors' distribution. mmpretrain's ``BEiTMaskGenerator`` has another one: its ``randint`` leaves the upper
    bound out, so that no block ever touches the last row and column.

    Args:
        grid: Rows and columns of patches.
        num_masked: Patches to mask, in 0..rows * columns - 1.
        min_block: Smallest area of a block, in patches.
        max_block: Largest area of a block, in patches.
        min_aspect: Smallest height over width.

    Returns:
        bool array (rows, columns), True = masked.
    """
    rows, columns = grid
    mask = np.zeros(grid, dtype=bool)
    log_aspect = math.log(min_aspect)
    count = tries = 0
    while count < num_masked:
        most = min(num_masked - count, max_block)
        tries += 1
        if tries > MOST_TRIES:
            row, column = random.choice(np.argwhere(~mask).tolist())
            height = width = 1
        else:
            area = random.uniform(min_block, most)
            aspect = math.exp(random.uniform(log_aspect, -log_aspect))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < height < rows and 0 < width < columns):
                continue
            row, column = random.randint(0, rows - height), random.randint(0, columns - width)
        block = mask[row : row + height, column : column + width]
        new = height * width - int(block.sum())
        if 0 < new <= most:
            block[:] = True
            count += new
            tries = 0
    return mask


@TRANSFORMS.register_module()
class MaskSampling(BaseTransform):
    """Draws an order of the patches in which the first V are kept and the other M are masked (METHOD: masks).

    ``'mix'``, the authors' way: a block mask of ``num_blocked`` patches; visible ones first in random order, then the
    block-masked ones in random order; then the order is rolled by r in 0..roll - 1, drawn once a batch (by
    :func:`collate`, from its first image), so that r block-masked patches come to the front and are kept.
    ``'block'``: all masked patches in blocks. ``'random'``: any.

    Added keys: ``mask_order`` (int64 array (rows * columns,)), ``mask_roll`` (int) and ``num_masked`` (int).

    Args:
        grid_size: Rows and columns of patches, img_size // patch_size.
        ratio: Share of patches to mask; M = round(ratio * rows * columns).
        strategy: ``'mix'``, ``'block'`` or ``'random'``.
        num_blocked: Patches in blocks under ``'mix'``; 120 of 196, or the same share of another grid, by default.
        min_block: Smallest area of a block, in patches.
        max_block: Largest area of a block, in patches.
        min_aspect: Smallest height over width of a block.
        roll: Number of rolls to choose from under ``'mix'``.

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
    ) -> None:
        self.grid = to_pair(grid_size, 'grid_size')
        patches = self.grid[0] * self.grid[1]
        self.num_masked = round(ratio * patches)
        if not 0 < self.num_masked < patches:
            raise ValueError(
                f'ratio {ratio} masks {self.num_masked} of {patches} patches; 0 < masked < {patches} is needed'
            )
        if strategy not in self.STRATEGIES:
            raise ValueError(f'strategy must be one of {", ".join(self.STRATEGIES)}, but is {strategy!r}')
        if num_blocked is None:
            num_blocked = round(patches * 120 / 196)
        if strategy == 'mix' and not 0 < num_blocked < patches:
            raise ValueError(f'num_blocked {num_blocked} must be in 1..{patches - 1}')
        if strategy != 'random' and not 0 < min_block <= max_block:
            raise ValueError(f'0 < min_block <= max_block is needed, but they are {min_block} and {max_block}')
        if strategy != 'random' and (not 0 < min_aspect <= 1 or min(self.grid) < 2):
            raise ValueError(
                f'blocks need min_aspect in (0, 1] and two rows and columns, but there are {min_aspect} and {self.grid}'
            )
        if roll < 1:
            raise ValueError(f'roll must be at least 1, but is {roll}')
        self.strategy = strategy
        self.num_blocked = self.num_masked if strategy == 'block' else num_blocked
        self.block: dict = dict(min_block=min_block, max_block=max_block, min_aspect=min_aspect)
        self.roll = roll if strategy == 'mix' else 1

    def transform(self, results: dict) -> dict:
        """Add an order of the patches to ``results``."""
        order = np.random.permutation(self.grid[0] * self.grid[1])
        if self.strategy != 'random':
            blocked = block_mask(self.grid, self.num_blocked, **self.block).ravel()
            # A stable sort keeps both parts in random order.
            order = order[np.argsort(blocked[order], kind='stable')]
        results.update(mask_order=order, mask_roll=random.randrange(self.roll), num_masked=self.num_masked)
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(grid={self.grid}, num_masked={self.num_masked}, strategy={self.strategy!r}, '
            f'num_blocked={self.num_blocked}, {self.block}, roll={self.roll})'
        )
