"""Schedules follow the length of a run: what was written for 800 epochs fits 30 epochs, or 100,000 iterations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from bootmae_mm.config import bound_names, late_binding, value_at
from bootmae_mm.config.files import ConfigFile, config_files

# Options of mmengine's schedulers that are points in time, and lists of them.
POSITIONS = ('begin', 'end', 'T_max', 'step_size', 'total_steps')
LISTS = ('milestones', 'periods')
# Keys of a config that follow its length.
FOLLOWING = (
    'param_scheduler',
    'train_cfg.val_interval',
    *(f'default_hooks.{name}' for name in ('ema', 'ema.decay', 'feature_weight')),
    *(f'default_hooks.{name}' for name in ('checkpoint', 'checkpoint.interval', 'checkpoint.keep_every')),
    *(f'default_hooks.{name}' for name in ('reconstruction', 'reconstruction.interval')),
)


class RunLength(NamedTuple):
    """Length of a run.

    Attributes:
        number: Number of epochs or iterations.
        by_epoch: Which of both.
    """

    number: float
    by_epoch: bool

    def __str__(self) -> str:
        return f'{self.number:g} {"epochs" if self.by_epoch else "iterations"}'


def run_length(train_cfg: dict | None) -> RunLength | None:
    """The length that a ``train_cfg`` asks for; None if it names none."""
    options = train_cfg or {}
    by_iter = options.get('by_epoch') is False or str(options.get('type', '')).endswith(
        ('IterBasedTrainLoop', 'IterLoop')
    )
    number = options.get('max_iters' if by_iter else 'max_epochs')
    if not isinstance(number, (int, float)) or isinstance(number, bool) or number <= 0:
        return None  # refused elsewhere, with its key
    return RunLength(number, not by_iter)


def fit_to_length(cfg: Config, path: str | Path, options: dict[str, Any]) -> None:
    """Stretch or shorten what a config inherits to the length of its run.

    A file that names schedules, or the decay of the teacher, writes them for the length of the run that it names, too.
    If a child config or the command line changes the length alone, they are scaled with it; if it changes the schedule,
    that one stays as it is. A run by iterations that inherits from one by epochs also gets checkpoints, pictures and
    log lines by iterations.

    Args:
        cfg: Config with the command line applied; changed in place.
        path: Path of its file.
        options: What the command line has changed.

    Raises:
        ValueError: If the length is given in the unit of the other kind of run.
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
    for name in ('ema', 'feature_weight', 'checkpoint', 'reconstruction'):
        old = written[f'default_hooks.{name}']
        if name in hooks and old and not _sets_unit(file, name, options):
            if not length.by_epoch:
                hooks[name]['by_epoch'] = False
            elif not old.by_epoch:
                hooks[name]['by_epoch'] = True
    if not length.by_epoch:
        cfg.log_processor = {'by_epoch': False, **(cfg.get('log_processor') or {})}


def _drop_other_unit(cfg: Config, length: RunLength, file: ConfigFile, options: dict[str, Any]) -> None:
    """Drop an inherited length of the other kind; one that the user has set is an error."""
    used, other = ('max_epochs', 'max_iters') if length.by_epoch else ('max_iters', 'max_epochs')
    if other not in cfg.train_cfg:
        return
    sets_used = file.sets(f'train_cfg.{used}') or {'train_cfg', f'train_cfg.{used}'} & set(options)
    is_set = file.sets(f'train_cfg.{other}') and not sets_used
    if is_set or f'train_cfg.{other}' in options:
        way = 'by iterations: set train_cfg.by_epoch=False too' if length.by_epoch else f'by epochs; use {used}'
        raise ValueError(f'train_cfg.{other} has no effect in this run of {length}; it is for runs {way}')
    cfg.train_cfg.pop(other)


def _sets_unit(file: ConfigFile, hook: str, options: dict[str, Any]) -> bool:
    key = f'default_hooks.{hook}.by_epoch'
    return key in options or file.sets(key)


def scale_scheduler(scheduler: ConfigDict, old: RunLength, new: RunLength) -> None:
    """Scale the points in time of one scheduler's config, in place; one that is no number is refused elsewhere."""
    points = [scheduler[key] for key in POSITIONS if key in scheduler]
    points += [value for key in LISTS for value in scheduler.get(key) or []]
    if not all(isinstance(value, (int, float)) for value in points):
        return
    factor = new.number / old.number
    by_epoch = scheduler.get('by_epoch', True)
    if old.by_epoch != new.by_epoch:
        if by_epoch != old.by_epoch:  # in the unit of the new run already: a warm-up of 500 iterations stays one
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
    if whole and 'end' in scheduler and by_epoch == new.by_epoch:  # at least a step, inside the run
        scheduler['end'] = min(max(scheduler['end'], scheduler.get('begin', 0) + 1), int(new.number))
        scheduler['begin'] = min(scheduler.get('begin', 0), scheduler['end'] - 1)
    for key in LISTS:
        if isinstance(scheduler.get(key), (list, tuple)):
            scheduler[key] = [max(1, round(value * factor)) for value in scheduler[key]]


def _is_given(key: str, options: dict[str, Any]) -> bool:
    """Whether the command line sets a key, or what it is a part of; of schedules a point in time."""
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
    """The length of the run in the file that has set a key, or in the first child of it that names one."""
    return next((length for part in _way_to_origin(file, key) if (length := run_length(part.get('train_cfg')))), None)


def _way_to_origin(file: ConfigFile, key: str) -> Iterator[dict]:
    """Values of the files from the one that has set a key down to the given one; none if no file has."""
    if file.sets(key):
        yield file.values()
        return
    for base in file.bases:
        way = list(_way_to_origin(base, key))
        if way:
            yield from way
            yield file.values()
            return
