"""Training loops that resume exactly, without loading batches already seen."""

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
    """Epoch-based loop that can resume mid-epoch.

    Batches already seen are skipped without loading them. (mmengine's own loop would repeat the epoch from its start.)
    """

    def run(self) -> object:
        """Train."""
        done = self._iter - self._epoch * len(self.dataloader)
        # All iterations of an epoch may be done, but not its evaluation.
        if not 0 <= done <= len(self.dataloader):
            self.runner.logger.warning(
                f'iteration {self._iter} is not in epoch {self._epoch} of {len(self.dataloader)} iterations: the data '
                'set, the batch or the number of processes has changed; resuming at the start of the epoch'
            )
            done = 0
        self._done = done
        return super().run()

    def run_epoch(self) -> None:
        """Iterate over the rest of the epoch."""
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
    """Iteration-based loop that resumes without loading batches already seen.

    The images come in the same order as with :class:`EpochLoop`, epoch by epoch of the sampler.

    Attributes:
        skipped: Offset of the data from the iterations in batches, so that a resume with another batch size continues
            at the same image.
    """

    skipped = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The original mmengine would start workers here, which load from the first image on.
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
        runner.call_hook('before_train_epoch')  # to mmengine's hooks the whole run is one epoch
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
        """Batches from the current iteration on, endlessly."""
        # With a custom batch sampler, the loader's own sampler is unused.
        sampler = getattr(self.dataloader.batch_sampler, 'sampler', self.dataloader.sampler)
        endless = isinstance(sampler, InfiniteSampler)  # one stream without epochs
        position = self._iter + self.skipped
        epoch, done = (0, position) if endless else divmod(position, len(self.dataloader))
        while True:
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(epoch)
            count = 0
            for batch in batches_from(self.dataloader, done):
                yield batch
                count += 1
            assert count, 'a loader without batches'  # otherwise this would never end
            epoch, done = epoch + 1, 0


class _Skipping:
    """Batch sampler that skips the first batches of its next pass.

    Args:
        batch_sampler: Batch sampler to wrap.
        count: Number of batches to skip, once.
    """

    def __init__(self, batch_sampler: Any, count: int) -> None:
        self.batch_sampler, self.count = batch_sampler, count

    def __iter__(self) -> Iterator[list]:
        # A generator, which starts with its first batch: torch creates two iterators and uses the second.
        count, self.count = self.count, 0
        yield from islice(iter(self.batch_sampler), count, None)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __getattr__(self, name: str) -> Any:  # sampler, batch_size, ...
        return getattr(self.batch_sampler, name)


def batches_from(loader: DataLoader, done: int) -> Iterator[Any]:
    """Batches of a loader after the first ``done``, which are not loaded."""
    if not done:
        return iter(loader)
    if not isinstance(loader.batch_sampler, _Skipping):
        # torch does not allow to replace the batch sampler; the replacement has the same length.
        object.__setattr__(loader, 'batch_sampler', _Skipping(loader.batch_sampler, done))
    loader.batch_sampler.count = done
    return iter(loader)
