"""Loops that resume exactly, and without loading what was seen before."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, loops
from torch.utils.data import DataLoader

from bootmae_mm.registry import LOOPS


@LOOPS.register_module()
class EpochLoop(EpochBasedTrainLoop):
    """mmengine's loop by epochs, which can resume in the middle of an epoch.

    (mmengine's own would repeat the epoch from its start, with iterations counted on.) Batches that were seen are
    skipped without loading them.

    Args: as for mmengine's.
    """

    def run(self) -> object:
        """Train."""
        done = self._iter - self._epoch * len(self.dataloader)
        # All iterations may be done, and what follows an epoch (evaluation) not.
        if not 0 <= done <= len(self.dataloader):
            self.runner.logger.warning(
                f'iteration {self._iter} is not in epoch {self._epoch} of {len(self.dataloader)} iterations: the data '
                'set, the batch or the number of processes has changed; resuming at the start of the epoch'
            )
            done = 0
        self._done = done
        return super().run()

    def run_epoch(self) -> None:
        """Iterate over what is left of the epoch."""
        done, self._done = self._done, 0
        if not done:
            super().run_epoch()
            return
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for index, batch in enumerate(batches_from(self.dataloader, done), done):
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module()
class IterLoop(IterBasedTrainLoop):
    """mmengine's loop by iterations, which resumes without loading what was seen before.

    The data come in rounds, each of them an epoch of the sampler: the same images in the same order as with
    :class:`EpochLoop`, on resume too.

    Args: as for mmengine's.

    Attributes:
        skipped: Batches of the data beyond the iterations, so that with another batch after a resume the next image is
            the same.
    """

    skipped = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The original mmengine starts workers here, which load from the first image on, and take what an endless
        # sampler has.
        iterator = loops._InfiniteDataloaderIterator
        loops._InfiniteDataloaderIterator = lambda dataloader: None
        try:
            super().__init__(*args, **kwargs)
        finally:
            loops._InfiniteDataloaderIterator = iterator

    def run(self) -> object:
        """Train."""
        runner = self.runner
        runner.call_hook('before_train')
        runner.call_hook('before_train_epoch')  # the whole run is one epoch to mmengine's hooks
        batches = self._batches()
        while self._iter < self._max_iters and not self.stop_training:
            runner.model.train()
            self.run_iter(next(batches))
            self._decide_current_val_interval()
            due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
            if runner.val_loop is not None and self._iter >= self.val_begin and due:
                runner.val_loop.run()
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    def _batches(self) -> Iterator[Any]:
        """Batches from the current iteration on, without end."""
        # With a batch sampler of its own a loader has another sampler only for show.
        sampler = getattr(self.dataloader.batch_sampler, 'sampler', self.dataloader.sampler)
        endless = isinstance(sampler, InfiniteSampler)  # one stream, which no epoch divides
        position = self._iter + self.skipped
        epoch, done = (0, position) if endless else divmod(position, len(self.dataloader))
        while True:
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(epoch)
            count = 0
            for batch in batches_from(self.dataloader, done):
                yield batch
                count += 1
            assert count, 'a loader without batches'  # else this would never end
            epoch, done = epoch + 1, 0


class _Skipping:
    """A batch sampler whose next pass begins later.

    Args:
        batch_sampler: Any sampler of batches.
        count: Number of batches to skip, once.
    """

    def __init__(self, batch_sampler: Any, count: int) -> None:
        self.batch_sampler, self.count = batch_sampler, count

    def __iter__(self) -> Iterator[list]:
        # A generator, which begins with the first batch: torch asks for two iterators and uses the second.
        count, self.count = self.count, 0
        yield from islice(iter(self.batch_sampler), count, None)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __getattr__(self, name: str) -> Any:  # sampler, batch_size, ...
        return getattr(self.batch_sampler, name)


def batches_from(loader: DataLoader, done: int) -> Iterator[Any]:
    """Batches of a loader from the one after ``done`` on; the others are not loaded."""
    if not done:
        return iter(loader)
    if not isinstance(loader.batch_sampler, _Skipping):
        # torch refuses another batch sampler for a loader; its place and its length stay the same here.
        object.__setattr__(loader, 'batch_sampler', _Skipping(loader.batch_sampler, done))
    loader.batch_sampler.count = done
    return iter(loader)
