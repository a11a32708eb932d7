"""A sampler that makes every sample of a run reproducible."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler

from bootmae_mm.registry import DATA_SAMPLERS


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the states of Python's, numpy's and torch's generators (CUDA too) at the end."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():  # all devices
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


class SeededIndex(int):
    """Index of a dataset that carries the seed of this visit.

    Arithmetic of dataset wrappers (``ConcatDataset`` subtracts, ``RepeatDataset`` takes the remainder) keeps the seed.

    Attributes:
        key: Seed in 0..2**32 - 1, or numbers that the seed is derived from.
    """

    key: int | tuple[int, ...]

    def __new__(cls, index: int, key: int | tuple[int, ...]) -> SeededIndex:
        new = super().__new__(cls, index)
        new.key = key
        return new

    # Unpickling calls __new__ with these; workers get the indices pickled.
    def __getnewargs__(self) -> tuple[int, int | tuple[int, ...]]:  # type: ignore[override]
        return int(self), self.key

    @property
    def seed(self) -> int:
        """Seed of the random choices of the pipeline, in 0..2**32 - 1."""
        if isinstance(self.key, int):
            return self.key
        # Well mixed: neighboring positions get unrelated seeds.
        return int(np.random.SeedSequence(self.key).generate_state(1)[0])

    def __add__(self, other: int) -> SeededIndex:
        return SeededIndex(int(self) + int(other), self.key)

    def __sub__(self, other: int) -> SeededIndex:
        return SeededIndex(int(self) - int(other), self.key)

    def __mod__(self, other: int) -> SeededIndex:
        return SeededIndex(int(self) % int(other), self.key)

    def __floordiv__(self, other: int) -> SeededIndex:
        return SeededIndex(int(self) // int(other), self.key)


class SeededList(list):
    """List of indices in a dataset wrapper; an item keeps the seed of the index that looked it up."""

    def __getitem__(self, index: Any) -> Any:
        value = super().__getitem__(index)
        return SeededIndex(value, index.key) if isinstance(index, SeededIndex) else value


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """mmengine's sampler, whose indices carry a seed derived from (seed, epoch, position).

    Crops, flips and masks do not depend on the number of workers and processes, nor on when a run was resumed. (Only
    the roll of the mask, drawn once per batch, depends on which images share a batch.) The datasets of this project
    follow the seed.
    """

    def __iter__(self) -> Iterator[SeededIndex]:
        """Indices of this process, in the order of the epoch."""
        for step, index in enumerate(super().__iter__()):
            # The position in the epoch, over all processes.
            yield SeededIndex(index, (self.seed, self.epoch, step * self.world_size + self.rank))
