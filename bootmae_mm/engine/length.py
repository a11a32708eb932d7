"""Scaling of schedules to the length of a run: from 800 epochs to 30 epochs, or to 100,000 iterations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from bootmae_mm.config import bound_names, late_binding, value_at
from bootmae_mm.config.files import ConfigFile, config_files
from bootmae_mm.validation import MAX_COUNT, require

# Options of mmengine's schedulers that are positions in the run, and lists of them.
POSITIONS = ('begin', 'end', 'T_max', 'step_size', 'total_steps')
LISTS = ('milestones', 'periods')
# Keys of a config that are scaled with its length.
FOLLOWING = (
    'param_scheduler',
    'train_cfg.val_interval',
    *(f'default_hooks.{name}' for name in ('ema', 'ema.decay', 'feature_weight', 'masking')),
    *(f'default_hooks.{name}' for name in ('checkpoint', 'checkpoint.interval', 'checkpoint.keep_every')),
    *(f'default_hooks.{name}' for name in ('reconstruction', 'reconstruction.interval')),
)


class RunLength(NamedTuple):
    """Length of a run.

    Attributes:
        number: Number of epochs or iterations.
        by_epoch: Whether the number counts epochs.
    """

    number: float
    by_epoch: bool

    def __str__(self) -> str:
        return f'{self.number:g} {"epochs" if self.by_epoch else "iterations"}'


def run_length(train_cfg: dict | None) -> RunLength | None:
    """Length set in a ``train_cfg``, or None."""
    options = train_cfg or {}
    by_iter = options.get('by_epoch') is False or str(options.get('type', '')).endswith(
        ('IterBasedTrainLoop', 'IterLoop')
    )
    number = options.get('max_iters' if by_iter else 'max_epochs')
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not 0 < number <= MAX_COUNT:
        return None  # check_settings refuses it, with its key
    return RunLength(number, not by_iter)


def fit_to_length(cfg: Config, path: str | Path, options: dict[str, Any]) -> None:
    """Scale inherited schedules to the length of the run.

    A file that states schedules, or the decay of the teacher, states them for the length in the same file. If a child
    config or the command line changes only the length, they are scaled; if it changes a schedule, that one is kept. A
    run by iterations that inherits from one by epochs also gets checkpoints, pictures and log lines by iterations.

    Args:
        cfg: Config with the command line applied; changed in place.
        path: Path of its file.
        options: Options of the command line.

    Raises:
        ConfigError: If the length is given in the unit of the other kind of run.
    """
    length = run_length(cfg.get('train_cfg'))
    if length is None:
        return
    file = config_files(path)
    _drop_other_unit(cfg, length, file, options)
    with late_binding(bound_names(cfg), file):
        written = {key: None if _is_given(key, options) else _written_for(file, key) for key in FOLLOWING}
    old = written['param_scheduler']
    if old and old != length and cfg.get('param_scheduler'):
        schedulers = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
        for scheduler in schedulers:
            if isinstance(scheduler, dict):
                scale_scheduler(scheduler, old, length)
        parts = [part for part in schedulers if isinstance(part, dict)]
        ends = ', '.join(f'{s.get("type")} {s.get("begin", 0)}..{s.get("end", length.number)}' for s in parts)
        print_log(f'param_scheduler, written for {old}, is scaled to {length}: {ends}', logger='current')
    hooks = cfg.get('default_hooks') or ConfigDict()
    old, decay = written['default_hooks.ema.decay'], value_at(cfg, 'default_hooks.ema.decay')
    if old and old != length and decay and _are_pairs(decay):
        hooks.ema.decay = [(position * length.number / old.number, value) for position, value in decay]
        print_log(f'the decay of the teacher, written for {old}, is scaled to {length}', logger='current')
    intervals = {
        'train_cfg.val_interval': (cfg.train_cfg, 'val_interval'),
        **{
            f'default_hooks.{name}.{key}': (hooks.get(name) or {}, key)
            for name, key in (('checkpoint', 'interval'), ('checkpoint', 'keep_every'), ('reconstruction', 'interval'))
        },
    }
    for name, (options_of, key) in intervals.items():
        old = written[name]
        if old and old.by_epoch != length.by_epoch and isinstance(options_of.get(key), int) and options_of[key] > 0:
            options_of[key] = max(1, round(options_of[key] * length.number / old.number))
    for name in ('ema', 'feature_weight', 'masking', 'checkpoint', 'reconstruction'):
        old = written[f'default_hooks.{name}']
        if name in hooks and old and not _sets_unit(file, name, options):
            if not length.by_epoch:
                hooks[name]['by_epoch'] = False
            elif not old.by_epoch:
                hooks[name]['by_epoch'] = True
    if not length.by_epoch:
        cfg.log_processor = {'by_epoch': False, **(cfg.get('log_processor') or {})}


def _drop_other_unit(cfg: Config, length: RunLength, file: ConfigFile, options: dict[str, Any]) -> None:
    """Drop an inherited length in the other unit; refuse one that the user has set."""
    used, other = ('max_epochs', 'max_iters') if length.by_epoch else ('max_iters', 'max_epochs')
    if other not in cfg.train_cfg:
        return
    sets_used = file.sets(f'train_cfg.{used}') or {'train_cfg', f'train_cfg.{used}'} & set(options)
    is_set = file.sets(f'train_cfg.{other}') and not sets_used
    way = 'by iterations: set train_cfg.by_epoch=False too' if length.by_epoch else f'by epochs; use {used}'
    require(
        not is_set and f'train_cfg.{other}' not in options,
        f'train_cfg.{other} has no effect in this run of {length}; it is for runs {way}',
    )
    cfg.train_cfg.pop(other)


def _sets_unit(file: ConfigFile, hook: str, options: dict[str, Any]) -> bool:
    key = f'default_hooks.{hook}.by_epoch'
    return key in options or file.sets(key)


def scale_scheduler(scheduler: ConfigDict, old: RunLength, new: RunLength) -> None:
    """Scale the positions in one scheduler's config, in place; check_settings refuses what is not a number."""
    points = [scheduler[key] for key in POSITIONS if key in scheduler]
    points += [value for key in LISTS for value in scheduler.get(key) or []]
    if not all(isinstance(value, (int, float)) for value in points):
        return
    factor = new.number / old.number
    by_epoch = scheduler.get('by_epoch', True)
    if old.by_epoch != new.by_epoch:
        if by_epoch != old.by_epoch:  # in the unit of the new run already, such as a warm-up of 500 iterations
            return
        by_epoch = scheduler['by_epoch'] = new.by_epoch
        scheduler.pop('convert_to_iter_based', None)
        if by_epoch:
            scheduler['convert_to_iter_based'] = True
    whole = not (by_epoch and scheduler.get('convert_to_iter_based'))
    for key in POSITIONS:
        if isinstance(scheduler.get(key), (int, float)) and scheduler[key] > 0:
            value = scheduler[key] * factor
            scheduler[key] = max(int(key != 'begin'), round(value)) if whole else value
    if whole and 'end' in scheduler and by_epoch == new.by_epoch:  # at least one step, within the run
        scheduler['end'] = min(max(scheduler['end'], scheduler.get('begin', 0) + 1), int(new.number))
        scheduler['begin'] = min(scheduler.get('begin', 0), scheduler['end'] - 1)
    for key in LISTS:
        if isinstance(scheduler.get(key), (list, tuple)):
            scheduler[key] = [max(1, round(value * factor)) for value in scheduler[key]]


def _is_given(key: str, options: dict[str, Any]) -> bool:
    """Whether the command line sets a key or a parent of it, or a position of a schedule."""
    for option in options:
        if f'{key}.'.startswith(f'{option}.'):
            return True
        if key == 'param_scheduler' and option.startswith(f'{key}.'):
            last = option.split('.')[-1]
            if last in (*POSITIONS, *LISTS, 'type', 'by_epoch') or last.isdigit():
                return True
    return False


def _are_pairs(decay: Any) -> bool:
    return isinstance(decay, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], (int, float)) for pair in decay
    )


def _written_for(file: ConfigFile, key: str) -> RunLength | None:
    """Length of the run in the file that sets a key, or in its first child that states one."""
    return next((length for part in _way_to_origin(file, key) if (length := run_length(part.get('train_cfg')))), None)


def _way_to_origin(file: ConfigFile, key: str) -> Iterator[dict]:
    """Values of the files from the one that sets a key down to the given one."""
    if file.sets(key):
        yield file.values()
        return
    for base in file.bases:
        way = list(_way_to_origin(base, key))
        if way:
            yield from way
            yield file.values()
            return
