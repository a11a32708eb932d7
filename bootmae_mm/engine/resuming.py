"""Resuming with a changed config: another length, lr, batch size or number of processes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

from mmengine.optim import _ParamScheduler
from mmengine.runner import Runner

from bootmae_mm.checkpoints.saved_config import saved_config
from bootmae_mm.validation import require

# Keys that do not affect training.
IGNORED = {'work_dir', 'load_from', 'resume', 'launcher', 'log_level', 'experiment_name', 'auto_resume'}
# State of a scheduler that changes from step to step; the rest follows from the config.
MOVING = {'optimizer', 'last_step', '_global_step', '_last_value', 'verbose'}
MAX_SHOWN = 120  # characters of a value in a log line


def progress_meta(runner: Runner) -> dict[str, int]:
    """Units of progress that a checkpoint records, for :func:`adapt_position`."""
    loader = runner.train_dataloader
    batch = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
    return dict(
        iters_per_epoch=len(loader),
        images_per_iter=batch * runner.world_size,
        processes=runner.world_size,
        skipped_batches=getattr(runner.train_loop, 'skipped', 0),
    )


def config_differences(old: Any, new: Any, key: str = '') -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both values; a missing one is None."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}, key=str):
            if key or name not in IGNORED:
                yield from config_differences(old.get(name), new.get(name), f'{key}.{name}' if key else str(name))
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        if len(old) == len(new):
            for index, pair in enumerate(zip(old, new, strict=True)):
                yield from config_differences(*pair, f'{key}.{index}')
            return
        same = next(
            (i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), min(len(old), len(new))
        )
        yield f'{key}.{same}...', list(old[same:]), list(new[same:])  # from the first difference on
    elif old != new:
        yield key, old, new


def check_resumable(runner: Runner, checkpoint: dict) -> None:
    """Log the differences between the config in a checkpoint and that of a run; refuse those that cannot change.

    Raises:
        ConfigError: For another optimizer, other trained parameters, another seed, or a run that ends before the
            checkpoint.
    """
    meta = checkpoint['meta']
    try:
        old = saved_config(checkpoint)
    except ValueError as error:
        runner.logger.warning(f'the config in the checkpoint cannot be compared: {error}')
        old = None
    fixed = []
    for key, before, now in config_differences(old, runner.cfg.to_dict()) if old is not None else ():
        runner.logger.info(f'resume: {key} was {repr(before)[:MAX_SHOWN]}, is {repr(now)[:MAX_SHOWN]}')
        if key in ('optim_wrapper.optimizer.type', 'optim_wrapper.constructor'):
            fixed.append((key, before, now))
    if meta.get('processes', runner.world_size) != runner.world_size:
        runner.logger.info(f'resume: number of processes was {meta["processes"]}, is {runner.world_size}')
    seed = meta.get('seed'), runner._randomness_cfg.get('seed')
    if None not in seed and seed[0] != seed[1]:
        fixed.append(('randomness.seed', *seed))
    groups = checkpoint.get('optimizer', {}).get('param_groups')
    if groups is not None:
        saved, wanted = (
            [len(g['params']) for g in part] for part in (groups, runner.optim_wrapper.optimizer.param_groups)
        )
        if saved != wanted:
            fixed.append(('the parameters per group (frozen_stages, weight decay)', saved, wanted))
    changed = '; '.join(f'{key} was {before!r}, and is {now!r}' for key, before, now in fixed)
    require(not fixed, f'cannot change on resume: {changed}; to start from the weights of the checkpoint use load_from')
    loop = runner.train_loop
    by_iter = not hasattr(loop, 'run_epoch')
    done, end = (meta['iter'], loop.max_iters) if by_iter else (meta['epoch'], loop.max_epochs)
    unit = 'iters' if by_iter else 'epochs'
    require(done <= end, f'the checkpoint has finished {done} {unit}: train_cfg.max_{unit} must be at least {done}')


def adapt_position(runner: Runner, meta: dict) -> None:
    """Set the position of the loop in its own units, if the number of iterations per epoch has changed."""
    loop, length = runner.train_loop, len(runner.train_dataloader)
    now = progress_meta(runner)
    if not hasattr(loop, 'run_epoch'):  # by iterations: the count continues, and so do the images
        batches = meta['iter'] + meta.get('skipped_batches', 0)
        loop.skipped = (
            batches * meta.get('images_per_iter', now['images_per_iter']) // now['images_per_iter'] - meta['iter']
        )
        return
    epoch, iteration = meta['epoch'], meta['iter']
    before = meta.get('iters_per_epoch') or (iteration // epoch if epoch and not iteration % epoch else length)
    images = meta.get('images_per_iter') or now['images_per_iter'] * length / before
    if epoch == 0 and iteration > before:  # saved by a run by iterations
        epoch, iteration = iteration // before, iteration
    done = iteration - epoch * before
    if before == length and images == now['images_per_iter']:
        position = iteration
    else:
        same = length if done == before else int(done * images // now['images_per_iter'])
        position = epoch * length + min(same, length)
        runner.logger.warning(
            f'an epoch had {before} iterations and now has {length}: resuming at iteration {position} of the run, '
            f'{position - epoch * length} of epoch {epoch + 1}'
        )
    loop._epoch, loop._iter = epoch, position


class Hyperparameters:
    """Learning rates, weight decay, betas and schedules of the config, saved before a checkpoint replaces them.

    Args:
        runner: Runner with a fresh optimizer and fresh schedulers.
        scheduler_cfg: Config of the schedulers.
    """

    def __init__(self, runner: Runner, scheduler_cfg: Any) -> None:
        self.scheduler_cfg = scheduler_cfg
        self.groups = [
            {key: copy.deepcopy(value) for key, value in group.items() if key != 'params'}
            for group in runner.optim_wrapper.param_groups
        ]
        self.schedules = self._static(runner)

    @staticmethod
    def _static(runner: Runner) -> list[dict]:
        return [
            {key: value for key, value in scheduler.state_dict().items() if key not in MOVING}
            for scheduler in runner.param_schedulers or []
        ]

    def apply(self, runner: Runner, saved: int) -> None:
        """Restore what differs from the checkpoint, with schedules at the current iteration.

        Args:
            runner: Runner that has resumed.
            saved: Number of schedulers in the checkpoint.
        """
        schedulers = runner.param_schedulers or []
        scheduled = {scheduler.param_name for scheduler in schedulers}
        scheduled |= {f'initial_{name}' for name in scheduled}
        for group, wanted in zip(runner.optim_wrapper.param_groups, self.groups, strict=True):
            group.update({key: value for key, value in wanted.items() if key not in scheduled})
        restored = self._static(runner)
        simple = all(isinstance(s, _ParamScheduler) and 'Plateau' not in type(s).__name__ for s in schedulers)
        if (restored == self.schedules and saved == len(schedulers)) or not simple:
            return
        for group, wanted in zip(runner.optim_wrapper.param_groups, self.groups, strict=True):
            group.update(wanted)
            for name in {scheduler.param_name for scheduler in schedulers}:
                group[name] = wanted[f'initial_{name}']
        runner.param_schedulers = runner.build_param_scheduler(self.scheduler_cfg)
        self._advance(runner)
        rate = runner.optim_wrapper.param_groups[0]['lr']
        runner.logger.info(f'resume: schedules are those of the config; lr is {rate:.4g} at iteration {runner.iter}')

    @staticmethod
    def _advance(runner: Runner) -> None:
        """Step the schedulers up to the current iteration: mmengine's have no closed form."""
        length = len(runner.train_dataloader) if hasattr(runner.train_loop, 'run_epoch') else runner.max_iters + 1
        by_iter = [scheduler for scheduler in runner.param_schedulers if not scheduler.by_epoch]
        by_epoch = [scheduler for scheduler in runner.param_schedulers if scheduler.by_epoch]
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of scheduler steps before optimizer steps
            for iteration in range(1, runner.iter + 1):
                for scheduler in by_iter:
                    scheduler.step()
                if iteration % length == 0 and iteration // length <= runner.epoch:
                    for scheduler in by_epoch:
                        scheduler.step()
