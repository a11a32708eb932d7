"""The process of a job: its command, what it must not change between two starts, and weights that need no training."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from bootmae_mm.config import load_config
from bootmae_mm.engine.recovery import checkpoint_in
from bootmae_mm.engine.training import as_text
from bootmae_mm.options import Unparsed
from bootmae_mm.validation import require

from .plan import Job, Study, slug
from .results import DONE, PROBE, done, write_json
from .slots import Slot

SPEC = 'job.json'  # what a job was started with
INITIAL = 'initial.pth'  # random weights


def command_of(study: Study, job: Job, slot: Slot) -> list[str]:
    """Command of a job whose needs are done."""
    bootmae, folder = [sys.executable, '-m', 'bootmae_mm'], study.out / job.key
    if job.probe is None:
        config, options = job.run.config, _train_options(study, job)
    else:
        checkpoint, given = checkpoint_of(study, job), job.probe.given
        if job.probe.config is None:
            command = [*bootmae, 'probe', checkpoint, str(job.probe.data), '--no-baselines', '--k', str(given.k)]
            command += ['--max-per-class', str(given.max_per_class), '--out', str(folder / PROBE)]
            command += ['--labels', *map(str, given.labels_per_class)]
            if given.finetune:
                command += ['--finetune', *map(str, given.finetune), '--steps', str(given.steps)]
                command += ['--draws', str(given.draws), *(['--flip'] if given.flip else [])]
            return command
        config = job.probe.config
        options = {**given.options, given.checkpoint_key: checkpoint, 'randomness.seed': job.seed}
        options |= {} if job.probe.data is None else {'data_root': job.probe.data}
    devices = ['--devices', str(len(slot.gpus))] if len(slot.gpus) > 1 else []
    text = [f'{key}={_text(value)}' for key, value in options.items()]
    return [*bootmae, 'train', config, '--work-dir', str(folder), '--resume', *devices, '--cfg-options', *text]


def checkpoint_of(study: Study, job: Job) -> str:
    """Checkpoint of the finished pretraining of a job's run and seed."""
    if job.run.weights:
        return job.run.weights
    folder = study.out / Job(job.run, job.seed).key
    return str(folder / INITIAL) if job.run.untrained else checkpoint_in(folder)


def _train_options(study: Study, job: Job) -> dict[str, Any]:
    run = job.run
    options: dict[str, Any] = {'randomness.seed': job.seed}
    options |= {} if study.data is None else {'data_root': study.data}
    if study.curve is not None:
        data = study.curve.data or study.data
        assert data is not None  # Study.check_data
        options |= {
            'default_hooks.probe.data_root': data,
            'default_hooks.probe.times': study.curve.times,
            'default_hooks.probe.max_per_class': study.curve.max_per_class,
        }
    options |= run.options
    if run.time_of is not None:
        options['train_cfg.max_epochs'] = _epochs_in_time_of(study, job)
    for key, name in run.checkpoints.items():
        options[key] = checkpoint_of(study, study.train_job(name, job.seed))
    return options


def _epochs_in_time_of(study: Study, job: Job) -> int:
    """Epochs of a run that take the time of another one, by the first seed of both: the same for all seeds."""
    seed, run = job.run.seeds[0], job.run
    assert run.time_of is not None and run.like is not None
    wanted, like = (done(study, study.train_job(name, seed)) for name in (run.time_of, run.like))
    assert wanted is not None and like is not None
    require(wanted['seconds'], f'runs.{run.name}.time_of: {run.time_of} was not trained')
    require(like['epochs'], f'runs.{run.name}.time_of: {run.like} is not a run by epochs')
    return max(1, round(like['epochs'] * wanted['seconds'] / like['seconds']))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else as_text(value)


def spec_of(study: Study, job: Job) -> dict[str, Any]:
    """What must not change between two starts of a job, with that of the jobs it needs.

    Where the images of pretraining are may change, but not those that a probe measures with.
    """
    needs = [spec_of(study, need) for need in study.needs(job)]
    run, probe = job.run, job.probe
    if probe is not None:
        given = probe.given.model_dump(exclude={'runs', 'seeds'})
        given['options'] = _plain(given['options'])
        return dict(probe={**given, 'data': probe.data}, config=_digest(probe.config), needs=needs)
    options = _plain({key: value for key, value in run.options.items() if key != 'data_root'})
    facts: dict[str, Any] = dict(config=_digest(run.config), options=options, checkpoints=run.checkpoints)
    facts |= dict(time_of=run.time_of, like=run.like if run.time_of else None)
    return {**facts, 'untrained': run.untrained, 'weights': run.weights, 'needs': needs}


def _plain(options: dict[str, Any]) -> dict[str, str]:
    return {key: _text(value) for key, value in options.items()}


@functools.cache
def _digest(config: str | None) -> str | None:
    """A short name of what a config says."""
    if not config:
        return None
    values = load_config(config).to_dict()
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def check_spec(study: Study, job: Job) -> None:
    """Check that a job was not started with other settings before.

    Raises:
        ConfigError: If it was.
    """
    path = study.out / job.key / SPEC
    if not path.is_file():
        return
    before, now = json.loads(path.read_text(encoding='utf-8')), json.loads(json.dumps(spec_of(study, job)))
    changed = [key for key in now if before.get(key) != now[key]]
    folder = study.out / slug(job.run.name)
    require(
        not changed,
        f'{path.parent} was started with other settings ({", ".join(changed)}): delete {folder}, or choose another '
        '--out',
    )


def take_weights(study: Study, job: Job) -> None:
    """The "pretraining" of a run that has none."""
    folder = study.out / job.key
    if job.run.untrained:
        _write_initial(job, folder / INITIAL)
    write_json(folder / DONE, dict(epochs=None, steps=0, seconds=0, curve=[]))


def _write_initial(job: Job, path: Path) -> None:
    """Write the random weights that a run would start from."""
    import torch
    from mmengine.logging import MMLogger
    from mmengine.runner import set_random_seed

    from bootmae_mm.registry import MODELS

    cfg = load_config(job.run.config, {key: Unparsed(_text(value)) for key, value in job.run.options.items()})
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')  # mmengine tells of every parameter
    try:
        with torch.random.fork_rng(devices=[]):
            set_random_seed(job.seed)
            model = MODELS.build(cfg.model)
            model.init_weights()
    finally:
        logger.setLevel(level)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text)), path)
