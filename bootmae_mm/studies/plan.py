"""What a study file says: runs, seeds and probes, and the jobs that follow from them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from bootmae_mm.installed import SCOPE, config_file
from bootmae_mm.validation import ConfigError, Count, MissingFileError, Natural, Options, parse, require

TRAIN = 'train'  # folder of a run's pretraining, beside those of its probes
CHECKPOINT_KEY = 'model.backbone.init_cfg.checkpoint'  # of a config for fine-tuning


class RunOptions(Options):
    """An entry of ``runs``.

    Attributes:
        config: Config of pretraining, relative to the study file; default: the study's.
        like: Another run whose config, options and length are taken over.
        options: Keys of the config, dotted.
        epochs: Length; default: the config's.
        time_of: Another run: as many epochs as take its time, by the measured speed of the run in ``like``.
        checkpoints: Keys of the config that get the checkpoint of another run with the same seed.
        seeds: Seeds; default: the study's.
        untrained: Stay at random weights: the baseline of fine-tuning "from scratch".
        weights: A checkpoint that is there already, instead of a run.
    """

    config: str | None = None
    like: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    epochs: Count | None = None
    time_of: str | None = None
    checkpoints: dict[str, str] = Field(default_factory=dict)
    seeds: list[Natural] | None = None
    untrained: bool = False
    weights: str | None = None


class ProbeOptions(Options):
    """An entry of ``probes``: classifiers of frozen features, or with ``config`` a run of fine-tuning.

    Attributes:
        data: Folder of labeled images (``data_root`` of the config); default: the study's data.
        k: Number of neighbors.
        labels_per_class: Numbers of labels of each class for linear classifiers.
        max_per_class: Number of images of a class at most, in each of the two sets.
        finetune: Numbers of labels of each class to fine-tune the whole encoder with.
        steps: Steps of this fine-tuning.
        flip: Mirror half of the images in it.
        draws: Draws of labels for it.
        config: Config that fine-tunes and validates, relative to the study file.
        metric: Key of the result in its log, such as ``mIoU``, or keys by the names to show; the last values count.
        options: Keys of the config, dotted.
        checkpoint_key: Key of the config that gets the checkpoint.
        scale: Factor of the result, 100 for one in 0..1.
        runs: Only these runs; default: all.
        seeds: Only these seeds; default: all.
    """

    data: str | None = None
    k: Count = 20
    labels_per_class: list[Count] = Field(default_factory=lambda: [1, 10])
    max_per_class: Count = 1000
    finetune: list[Count] = Field(default_factory=list)
    steps: Count = 400
    flip: bool = False
    draws: Count = 1
    config: str | None = None
    metric: Any = None
    options: dict[str, Any] = Field(default_factory=dict)
    checkpoint_key: str = CHECKPOINT_KEY
    scale: float = 1.0
    runs: list[str] | None = None
    seeds: list[Natural] | None = None


class CurveOptions(Options):
    """The entry ``curve``: probes during pretraining, by :class:`ProbeHook`, for accuracy over steps and time."""

    data: str | None = None
    times: Count = 8
    max_per_class: Count = 200


class StudyOptions(Options):
    """A study file.

    Attributes:
        title: Heading of table and picture; default: the name of the file.
        config: Config of all runs that name no other, relative to the study file.
        data: Folder of images, ``data_root`` of the configs.
        options: Keys of the configs of all runs, dotted.
        seeds: Seeds of all runs that name no others.
        baseline: The run with which all others are compared; default: the first.
        runs: Runs by name.
        probes: Probes by name.
        curve: Probes during pretraining.
    """

    title: str | None = None
    config: str | None = None
    data: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    seeds: list[Natural] = Field(default_factory=lambda: [0])
    baseline: str | None = None
    runs: dict[str, RunOptions | None]
    probes: dict[str, ProbeOptions | None] = Field(default_factory=dict)
    curve: CurveOptions | None = None


@dataclass(frozen=True)
class Run:
    """One way of pretraining, run with each seed."""

    name: str
    config: str
    options: dict[str, Any]
    seeds: tuple[int, ...]
    like: str | None = None
    time_of: str | None = None
    checkpoints: dict[str, str] = field(default_factory=dict)
    untrained: bool = False
    weights: str | None = None


@dataclass(frozen=True)
class Probe:
    """One way of judging a checkpoint.

    Attributes:
        name: Its name.
        given: What the file says.
        config: Config that fine-tunes; None for classifiers of frozen features.
        data: Folder of labeled images.
        metrics: Keys of the log of a config by the names to show.
    """

    name: str
    given: ProbeOptions
    config: str | None
    data: str | None
    metrics: dict[str, str]


@dataclass(frozen=True)
class Job:
    """One process: a run of pretraining, or a probe of its checkpoint.

    Attributes:
        run: The run.
        seed: Its seed.
        probe: None for pretraining.
    """

    run: Run
    seed: int
    probe: Probe | None = None

    @property
    def key(self) -> str:
        """Folder of the job in that of the study."""
        return f'{slug(self.run.name)}/seed_{self.seed}/{slug(self.probe.name) if self.probe else TRAIN}'


@dataclass(frozen=True)
class Study:
    """A study: runs x seeds x probes.

    Attributes:
        title: Heading.
        out: Folder of everything that is written.
        runs: Runs by name.
        probes: Probes.
        baseline: Name of the run with which the others are compared.
        curve: Probes during pretraining.
        data: Folder of images.
    """

    title: str
    out: Path
    runs: dict[str, Run]
    probes: tuple[Probe, ...]
    baseline: str
    curve: CurveOptions | None
    data: str | None

    def jobs(self, only: Sequence[str] | None = None) -> list[Job]:
        """Jobs in the order of their start: all runs with the first seed, then with the next.

        Args:
            only: Names of runs; others come in if these need them.
        """
        return _sorted_jobs(self, set(self.runs if only is None else only))

    def check_data(self) -> None:
        """Check that all jobs have images: the file and the command together must name them.

        Raises:
            ConfigError: If the images of a probe are missing.
        """
        for probe in self.probes:
            require(
                probe.config or probe.data, f'probes.{probe.name}.data is missing, and the study has no data (--data)'
            )
        data = self.data or (self.curve.data if self.curve else None)
        require(self.curve is None or data, 'curve.data is missing, and the study has no data (--data)')

    def train_job(self, run: str, seed: int) -> Job:
        """Pretraining of a run; of the run's first seed, if it has not this one."""
        found = self.runs[run]
        return Job(found, seed if seed in found.seeds else found.seeds[0])

    def needs(self, job: Job) -> list[Job]:
        """Jobs that must be done before a job can start."""
        if job.probe is not None:
            return [Job(job.run, job.seed)]
        found = [self.train_job(name, job.seed) for name in job.run.checkpoints.values()]
        if job.run.time_of is not None:
            assert job.run.like is not None
            found += [self.train_job(name, job.run.seeds[0]) for name in (job.run.time_of, job.run.like)]
        return found


def read_study(
    path: str | Path,
    out: str | Path | None = None,
    data: str | None = None,
    options: dict[str, Any] | None = None,
) -> Study:
    """Read a study file.

    Args:
        path: YAML file, or ``bootmae_mm::NAME`` for one that comes with the package.
        out: Folder for everything that is written; default: work_dirs/NAME_OF_FILE.
        data: Folder of images, instead of the file's.
        options: Further keys of the configs of pretraining, dotted.

    Raises:
        MissingFileError: If a file is missing.
        ConfigError: If the file is wrong.
    """
    file = config_file(path)
    if not file.is_file():
        raise MissingFileError(f'no study {path}')
    try:
        values = yaml.safe_load(file.read_text(encoding='utf-8'))
    except yaml.YAMLError as error:
        raise ConfigError(f'{path} is not YAML: {" ".join(str(error).split())}') from None
    require(isinstance(values, dict), f'{path} must have keys, such as runs')
    given = parse(StudyOptions, values, 'study')
    require(given.runs, f'{path} has no runs')
    where = data or given.data
    entries = {name: entry or RunOptions() for name, entry in given.runs.items()}
    runs = {name: _run(name, entries, given, file, options or {}) for name in entries}
    study = Study(
        title=given.title or file.stem,
        out=Path(out or f'work_dirs/{file.stem}'),
        runs=runs,
        probes=tuple(_probe(name, entry or ProbeOptions(), file, where) for name, entry in given.probes.items()),
        baseline=given.baseline or next(iter(runs)),
        curve=given.curve,
        data=where,
    )
    _check(study, given)
    return study


def slug(name: str) -> str:
    """A name as that of a folder."""
    return re.sub(r'[^A-Za-z0-9_.-]+', '_', name)


def _run(name: str, entries: dict[str, RunOptions], study: StudyOptions, file: Path, options: dict[str, Any]) -> Run:
    """A run with what it takes over from the study and from the run that it is like."""
    entry, seen = entries[name], [name]
    config, chain, checkpoints = entry.config, [_own_options(entry)], dict(entry.checkpoints)
    while (like := entries[seen[-1]].like) is not None:
        key = f'runs.{name}.like'
        require(like in entries, f'{key}: no run {like!r}; runs: {", ".join(entries)}')
        require(like not in seen, f'{key}: {" -> ".join([*seen, like])} is a circle')
        seen.append(like)
        config = config or entries[like].config
        chain.append(_own_options(entries[like]))
        checkpoints = {**entries[like].checkpoints, **checkpoints}
    config = config or study.config
    require(config or entry.weights, f'runs.{name}.config is missing, and there is none for all runs')
    chain += [options, study.options]  # the command line is stronger than what the file says of all runs
    merged: dict[str, Any] = {}
    for part in reversed(chain):
        merged.update(part)
    return Run(
        name=name,
        config='' if config is None else _beside(config, file),
        options=merged,
        seeds=tuple(study.seeds if entry.seeds is None else entry.seeds),
        like=entry.like,
        time_of=entry.time_of,
        checkpoints=checkpoints,
        untrained=entry.untrained,
        weights=None if entry.weights is None else _weights(entry.weights, file),
    )


def _own_options(entry: RunOptions) -> dict[str, Any]:
    length = {} if entry.epochs is None else {'train_cfg.max_epochs': entry.epochs}
    return {**length, **entry.options}


def _probe(name: str, given: ProbeOptions, file: Path, data: str | None) -> Probe:
    metric = given.metric
    require((given.config is None) == (metric is None), f'probes.{name} needs config and metric, or neither')
    metrics = metric if isinstance(metric, dict) else {} if metric is None else {name: metric}
    require(
        metric is None or (metrics and all(isinstance(key, str) and key for key in metrics.values())),
        f'probes.{name}.metric must be a key of the log, such as mIoU, or keys by the names to show, but is {metric!r}',
    )
    config = None if given.config is None else _beside(given.config, file)
    return Probe(name, given, config, given.data or data, metrics)


def _beside(name: str, file: Path) -> str:
    """A config named in a study file; one that is not there is an error now, not after hours."""
    path = name if name.startswith(SCOPE) else str(file.parent / name)
    if not config_file(path).is_file():
        raise MissingFileError(f'no config {path}')
    return path


def _weights(name: str, file: Path) -> str:
    """A checkpoint named in a study file: beside it, or a name such as ``official:bootmae_vitb``."""
    beside = file.parent / name
    return str(beside) if beside.exists() else name


def _check(study: Study, given: StudyOptions) -> None:
    """Check the relations between runs."""
    names = ', '.join(study.runs)
    require(study.baseline in study.runs, f'baseline: no run {study.baseline!r}; runs: {names}')
    folders: dict[str, str] = {}
    for name, run in study.runs.items():
        require(run.seeds and len(set(run.seeds)) == len(run.seeds), f'runs.{name}.seeds must be different numbers')
        other = folders.setdefault(slug(name), name)
        require(other == name, f'runs {other!r} and {name!r} would have the same folder {slug(name)}')
        for key, needed in {**run.checkpoints, **({'time_of': run.time_of} if run.time_of else {})}.items():
            require(needed in study.runs, f'runs.{name}.{key}: no run {needed!r}; runs: {names}')
            missing = set(run.seeds) - set(study.runs[needed].seeds)
            is_one = len(study.runs[needed].seeds) == 1  # one checkpoint for all seeds, such as a teacher
            require(key == 'time_of' or is_one or not missing, f'runs.{name}: {needed} has no seeds {sorted(missing)}')
        has_length = (given.runs[name] or RunOptions()).epochs is not None
        require(run.time_of is None or run.like, f'runs.{name}.time_of needs like: the run whose speed is known')
        require(not (run.time_of and has_length), f'runs.{name}: time_of and epochs exclude each other')
        require(not (run.weights and run.untrained), f'runs.{name}: weights and untrained exclude each other')
    places: dict[str, str] = {}
    columns: dict[str, str] = {}
    for probe in study.probes:
        other = places.setdefault(slug(probe.name), probe.name)
        require(other == probe.name, f'probes {other!r} and {probe.name!r} would have the same folder')
        require(slug(probe.name) != TRAIN, f'a probe cannot have the name {TRAIN!r}')
        for shown in probe.metrics:
            other = columns.setdefault(shown, probe.name)
            require(
                other == probe.name, f'probes {other!r} and {probe.name!r} have a metric of the same name {shown!r}'
            )
        for name in probe.given.runs or []:
            require(name in study.runs, f'probes.{probe.name}.runs: no run {name!r}; runs: {names}')
    _sorted_jobs(study, set(study.runs))  # circles


def _sorted_jobs(study: Study, only: set[str]) -> list[Job]:
    wanted = [name for name in study.runs if name in only]
    rounds = max(len(study.runs[name].seeds) for name in wanted)
    order: dict[str, Job] = {}
    for turn in range(rounds):
        for name in wanted:
            run = study.runs[name]
            if turn < len(run.seeds):
                _add(study, Job(run, run.seeds[turn]), order, [])
    for job in [job for job in order.values() if job.run.name in only]:
        order.update((probe.key, probe) for probe in _probes_of(study, job))
    # Probes right after their run, so that a table is there early.
    return [part for job in order.values() if job.probe is None for part in (job, *_of(order, job))]


def _of(order: dict[str, Job], job: Job) -> Iterator[Job]:
    for other in order.values():
        if other.probe is not None and (other.run.name, other.seed) == (job.run.name, job.seed):
            yield other


def _probes_of(study: Study, job: Job) -> Iterator[Job]:
    for probe in study.probes:
        is_wanted = probe.given.runs is None or job.run.name in probe.given.runs
        if is_wanted and (probe.given.seeds is None or job.seed in probe.given.seeds):
            yield Job(job.run, job.seed, probe)


def _add(study: Study, job: Job, order: dict[str, Job], above: list[str]) -> None:
    """Add a job after those that it needs."""
    circle = ' -> '.join([*above, job.key])
    require(job.key not in above, f'the runs wait for each other: {circle}')
    if job.key in order:
        return
    for needed in study.needs(job):
        _add(study, needed, order, [*above, job.key])
    order[job.key] = job
