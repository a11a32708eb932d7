"""Masks of other methods: inverse blocks (CAPI) and uniform sampling (UM-MAE)."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from bootmae_mm.config.parts import build_part
from bootmae_mm.registry import TRANSFORMS
from bootmae_mm.validation import Few, PositiveShare, Share, Side, Size, require, validated

from .masking import MaskSampling


def build_masking(options: dict) -> MaskSampling:
    """Build masks from a config: :class:`MaskSampling` by default, or another ``type``.

    Raises:
        ConfigError: If the type makes no masks.
    """
    require(isinstance(options, dict), f'masking must be a dict, but is {options!r}')
    if 'type' not in options:
        return MaskSampling(**options)
    return build_part(options, MaskSampling, 'masking', TRANSFORMS)


@TRANSFORMS.register_module()
class InverseBlockSampling(MaskSampling):
    """Keeps one block of patches and masks all others (CAPI, arXiv 2502.08769).

    The block has a random aspect ratio and place, and as many patches as are kept (cut off in its last row). It is
    rolled around the borders of the image by a random distance, so that each patch is masked equally often. The other
    arguments are those of :class:`MaskSampling`.

    Args:
        min_aspect: Smallest height over width of the block.
        roll: Roll it around the borders.
    """

    @validated
    def __init__(
        self,
        grid_size: Size | None = None,
        img_size: Size = (224, 224),
        patch_size: Side = 16,
        ratio: Share = 0.75,
        min_aspect: PositiveShare = 0.5,
        roll: bool = True,
        per_image: Few = 1,
    ) -> None:
        super().__init__(grid_size, img_size, patch_size, ratio, strategy='random', per_image=per_image)
        self.min_aspect, self.rolls = min_aspect, roll
        rows, columns = self.grid
        self.num_kept = rows * columns - self.num_masked
        fits = self.num_kept <= min(rows, columns) ** 2
        require(fits, f'a block of {self.num_kept} kept patches does not fit a grid of {rows} x {columns}: raise ratio')

    def keys(self, rng: np.random.Generator) -> np.ndarray:
        """Keys that sort the patches of an image, (L,): in [0, 1) inside of the block, in [1, 2) outside."""
        (rows, columns), kept = self.grid, self.num_kept
        limit = math.log(1 / self.min_aspect)
        # Aspects at which the block is no wider and no higher than the grid.
        low = max(-limit, math.log(kept / columns**2))
        high = min(limit, math.log(rows**2 / kept))
        aspect = math.exp(rng.uniform(low, high))
        height, width = (math.ceil(math.sqrt(area) - 1e-9) for area in (kept * aspect, kept / aspect))
        top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        block = np.zeros(self.grid, dtype=bool)
        block[top : top + height, left : left + width] = True
        block.ravel()[np.flatnonzero(block)[kept:]] = False
        if self.rolls:
            block = np.roll(block, (rng.integers(rows), rng.integers(columns)), axis=(0, 1))
        return rng.random(rows * columns) + ~block.ravel()


@TRANSFORMS.register_module()
class UniformSampling(MaskSampling):
    """Keeps one random patch of every square of ``unit`` x ``unit`` patches (UM-MAE, arXiv 2205.10063).

    The share of masked patches follows: 0.75 for squares of 2 x 2. The other arguments are those of
    :class:`MaskSampling`.

    Args:
        unit: Side of a square in patches.
    """

    @validated
    def __init__(
        self,
        grid_size: Size | None = None,
        img_size: Size = (224, 224),
        patch_size: Side = 16,
        unit: Annotated[int, Field(ge=2, le=16)] = 2,
        per_image: Few = 1,
    ) -> None:
        super().__init__(grid_size, img_size, patch_size, 1 - unit**-2, strategy='random', per_image=per_image)
        rows, columns = self.grid
        fits = rows % unit == 0 and columns % unit == 0
        require(fits, f'unit {unit} must divide the {rows} x {columns} patches of the grid')
        self.unit = unit

    def keys(self, rng: np.random.Generator) -> np.ndarray:
        """Keys that sort the patches of an image, (L,): in [0, 1) for the kept one of every square, else in [1, 2)."""
        rows, columns = self.grid
        squares = rng.random((rows // self.unit, columns // self.unit, self.unit**2))  # draws of the patches of each
        masked = squares > squares.min(axis=2, keepdims=True)
        masked = masked.reshape(*squares.shape[:2], self.unit, self.unit).swapaxes(1, 2)  # (r, unit, c, unit)
        return rng.random(rows * columns) + masked.ravel()
