"""Results of a study: what its jobs found, and a table with means, deviations and paired differences."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootmae_mm.checkpoints.reading import load_file
from bootmae_mm.checkpoints.writing import replace_atomically
from bootmae_mm.engine.recovery import checkpoint_in
from bootmae_mm.validation import ConfigError, MissingFileError, require
from bootmae_mm.visualization import read_scalars

from .plan import Job, Study

DONE = 'done.json'  # of a finished job
PROBE = 'probe.json'  # of classifiers of frozen features


@dataclass
class Row:
    """Results of a run.

    Attributes:
        run: Name of the run.
        trained: Result of pretraining by seed: epochs, steps, seconds, curve.
        metrics: Metric -> seed -> value.
    """

    run: str
    trained: dict[int, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, dict[int, float]] = field(default_factory=dict)


@dataclass
class Table:
    """Results of a study.

    Attributes:
        title: Heading.
        baseline: Run that the others are compared with.
        rows: A row for each run that has begun to have results.
        metrics: Metrics in the order of the columns.
    """

    title: str
    baseline: str
    rows: list[Row]
    metrics: list[str]

    def markdown(self) -> str:
        """The table: mean +- deviation over seeds, in brackets the paired difference to the baseline."""
        head = ['run', 'seeds', 'epochs', 'time', *self.metrics]
        lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
        base = next((row for row in self.rows if row.run == self.baseline), Row(self.baseline))
        for row in self.rows:
            cells = [_cell(row.metrics.get(name, {}), base.metrics.get(name, {}), row is base) for name in self.metrics]
            seeds = ', '.join(map(str, sorted(row.trained)))
            epochs = _same(result.get('epochs') for result in row.trained.values())
            lines.append('| ' + ' | '.join([row.run, seeds, epochs, _time(row), *cells]) + ' |')
        return '\n'.join(lines)

    def add(self, path: str | Path) -> None:
        """Add the results in a file, of runs and seeds that this table does not have.

        Args:
            path: ``results.json`` of the same study, of another machine.

        Raises:
            MissingFileError: If there is no such file.
            ConfigError: If it is of another study.
        """
        if not Path(path).is_file():
            raise MissingFileError(f'no file {path}')
        other = json.loads(Path(path).read_text(encoding='utf-8'))
        is_same = isinstance(other, dict) and (other.get('title'), other.get('baseline')) == (self.title, self.baseline)
        require(is_same, f'{path} is of another study than {self.title!r} with the baseline {self.baseline!r}')
        for name, found in other['runs'].items():
            row = next((row for row in self.rows if row.run == name), Row(name))
            self.rows += [] if row in self.rows else [row]
            known = set(row.trained)
            row.trained |= {
                int(seed): result for seed, result in found['pretraining'].items() if int(seed) not in known
            }
            for metric, values in found['metrics'].items():
                new = {int(seed): value for seed, value in values.items() if int(seed) not in known}
                row.metrics.setdefault(metric, {}).update(new)
                self.metrics += [] if metric in self.metrics else [metric]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        runs = {
            row.run: dict(
                pretraining={str(seed): result for seed, result in sorted(row.trained.items())},
                metrics={
                    name: {str(seed): value for seed, value in sorted(values.items())}
                    for name, values in row.metrics.items()
                },
            )
            for row in self.rows
        }
        return dict(title=self.title, baseline=self.baseline, runs=runs)


def collect(study: Study) -> Table:
    """Read the results that are there."""
    rows, metrics = [], []
    several = sum(probe.config is None for probe in study.probes) > 1
    for run in study.runs.values():
        row = Row(run.name)
        for seed in run.seeds:
            trained = done(study, Job(run, seed))
            if trained is None:
                continue
            row.trained[seed] = trained
            for probe in study.probes:
                found = done(study, Job(run, seed, probe)) or {}
                for bare, value in found.get('metrics', {}).items():
                    name = f'{probe.name}: {bare}' if several and probe.config is None else bare
                    row.metrics.setdefault(name, {})[seed] = value
                    metrics += [name] if name not in metrics else []
        if row.trained:
            rows.append(row)
    return Table(study.title, study.baseline, rows, metrics)


def difference(values: dict[int, float], base: dict[int, float]) -> tuple[float, float | None] | None:
    """Paired difference to the baseline: mean and deviation over the seeds that both have, or None without any.

    Args:
        values: Value by seed.
        base: Value of the baseline by seed.
    """
    pairs = [value - base[seed] for seed, value in values.items() if seed in base]
    return (statistics.fmean(pairs), deviation(pairs)) if pairs else None


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample (n - 1), or None of fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def done(study: Study, job: Job) -> dict[str, Any] | None:
    """Result of a finished job, or None."""
    path = study.out / job.key / DONE
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None


def finish(study: Study, job: Job) -> dict[str, Any]:
    """Read what a job has left, and mark it as finished.

    Raises:
        ConfigError: If its result is missing.
    """
    folder = study.out / job.key
    result = _pretraining(folder) if job.probe is None else dict(metrics=_metrics(folder, job))
    write_json(folder / DONE, result)
    return result


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')  # several processes may write a table
    part.write_text(json.dumps(values, indent=1) + '\n', encoding='utf-8')
    replace_atomically(part, path)


def _pretraining(folder: Path) -> dict[str, Any]:
    """Length, time and curve of a run, from its log.

    The time is that of the iterations alone: their number x the median of the times in the log, which pauses and other
    processes move little.
    """
    entries = read_scalars(folder)
    times = [entry['time'] for entry in entries if 'time' in entry]
    require(times, f'the log in {folder} has no times of iterations')
    # The last iterations of an epoch may not be in the log.
    meta = load_file(checkpoint_in(folder), mmap=True).get('meta') or {}
    steps = meta.get('iter') or max(entry['step'] for entry in entries)
    seconds = statistics.median(times)
    curve = [
        dict(step=entry['step'], seconds=round(entry['step'] * seconds, 1), knn=entry['probe_knn'])
        for entry in entries
        if 'probe_knn' in entry
    ]
    epochs = max((entry['epoch'] for entry in entries if 'epoch' in entry), default=None)
    return dict(epochs=epochs, steps=steps, seconds=round(seconds * steps, 1), curve=curve)


def _metrics(folder: Path, job: Job) -> dict[str, float]:
    probe = job.probe
    assert probe is not None
    if probe.config is None:
        return json.loads((folder / PROBE).read_text(encoding='utf-8'))['features']
    entries = read_scalars(folder, names=tuple(probe.metrics.values()))
    found = {}
    for name, key in probe.metrics.items():
        values = [entry[key] for entry in entries if key in entry]
        if not values:
            there = sorted({name for entry in read_scalars(folder, names=('step',)) for name in entry})
            raise ConfigError(f'no {key!r} in the log in {folder}; it has {", ".join(there)}')
        found[name] = round(probe.given.scale * values[-1], 3)
    return found


def _cell(values: dict[int, float], base: dict[int, float], is_base: bool) -> str:
    if not values:
        return ''
    text = _with_deviation(statistics.fmean(values.values()), deviation(list(values.values())))
    found = None if is_base else difference(values, base)
    return text if found is None else f'{text} ({_with_deviation(*found, sign="+")})'


def _with_deviation(mean: float, spread: float | None, sign: str = '') -> str:
    return f'{mean:{sign}.1f}' + ('' if spread is None else f' ± {spread:.1f}')


def _same(values: Iterable[Any]) -> str:
    found = sorted({value for value in values if value is not None})
    return ' to '.join(map(str, dict.fromkeys(found[:1] + found[-1:])))


def _time(row: Row) -> str:
    seconds = [result['seconds'] for result in row.trained.values() if result.get('seconds')]
    if not seconds:
        return ''
    mean = statistics.fmean(seconds)
    return next(
        f'{mean / size:.1f} {unit}' for size, unit in ((3600, 'h'), (60, 'min'), (1, 's')) if mean >= size or size == 1
    )
