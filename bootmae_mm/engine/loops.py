"""A loop that goes on in the middle of an epoch."""

from __future__ import annotations

from itertools import islice

from mmengine.runner import EpochBasedTrainLoop

from bootmae_mm.registry import LOOPS


@LOOPS.register_module()
class EpochLoop(EpochBasedTrainLoop):
    """mmengine's loop by epochs; resumed from a checkpoint inside an epoch, it goes on there.

    (mmengine's own would begin the epoch anew, with iterations counted on.) A :class:`SeededSampler` skips what
    was seen without loading it; of other samplers the batches are loaded and dropped.

    Args: as for mmengine's.
    """

    def run(self) -> object:
        """Train."""
        done = self._iter - self._epoch * len(self.dataloader)
        # All iterations may be done, and what follows an epoch (evaluation) not.
        if not 0 <= done <= len(self.dataloader):
            self.runner.logger.warning(
                f'iteration {self._iter} is not in epoch {self._epoch} of {len(self.dataloader)} iterations: the data '
                'set, the batch or the number of processes has changed; going on at the start of the epoch'
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
        sampler = self.dataloader.sampler
        if hasattr(sampler, 'start'):
            sampler.start = done * self.dataloader.batch_size
            batches = iter(self.dataloader)
        else:
            batches = islice(self.dataloader, done, None)
        for index, batch in enumerate(batches, done):
            self.run_iter(index, batch)
        if hasattr(sampler, 'start'):
            sampler.start = 0
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
