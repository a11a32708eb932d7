"""A sampler that makes every sample of a run reproducible by itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from mmengine.dataset import DefaultSampler

from bootmae_mm.registry import DATA_SAMPLERS


class SeededIndex(int):
    """An index of a dataset that carries the seed of this visit.

    Attributes:
        seed: For the random choices of the pipeline, in 0..2**32 - 1.
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        new = super().__new__(cls, index)
        new.seed = seed
        return new

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        return int(self), self.seed


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """mmengine's sampler, whose indices carry a seed that follows from (seed, epoch, position).

    Crops, flips and masks then depend neither on the number of workers and processes nor on when a run was resumed:
    a resumed run sees what the uninterrupted one would have seen. The datasets of this project follow the seed.
    """

    def __iter__(self) -> Iterator[SeededIndex]:
        """Indices of this process, in the order of the epoch."""
        for step, index in enumerate(super().__iter__()):
            position = step * self.world_size + self.rank
            seed = np.random.SeedSequence((self.seed, self.epoch, position)).generate_state(1)[0]
            yield SeededIndex(index, int(seed))
