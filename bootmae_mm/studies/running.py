"""Running the jobs of a study, some at once, each in a process of its own; what is finished is not run again."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO

from mmengine.logging import print_log

from bootmae_mm.engine.recovery import wait_until_free
from bootmae_mm.validation import ConfigError
from bootmae_mm.visualization.study import draw_study

from .commands import SPEC, check_spec, command_of, spec_of, take_weights
from .plan import Job, Study
from .results import Table, collect, done, finish, write_json
from .slots import Slot, as_child, environment

CONSOLE = 'console.log'  # its output
LOOK = 0.2  # seconds between looks at the processes


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen
    console: IO
    slot: Slot
    start: float
    begin: int  # of its output in the console's file


class Failures(ConfigError):
    """Jobs that ended with an error; the others have run."""


def run_study(study: Study, slots: Sequence[Slot], jobs: Sequence[Job] | None = None) -> None:
    """Run the jobs of a study that are not finished, and write its table and picture after each.

    Args:
        study: The study.
        slots: What each of the processes that run at once may use.
        jobs: Jobs to run; default: all.

    Raises:
        Failures: If a job failed; those that need it did not run.
        ConfigError: If images are missing, or a folder holds a job of other settings.
    """
    study.check_data()
    wanted = study.jobs() if jobs is None else list(jobs)
    for job in wanted:
        check_spec(study, job)
    left = [job for job in wanted if done(study, job) is None]
    log(f'{study.title}: {len(wanted)} jobs, {len(wanted) - len(left)} of them done; {len(slots)} at once')
    pool = _Pool(study, slots, len(left))
    try:
        while left or pool.running:
            for job in list(left):
                missing = [need.key for need in study.needs(job) if done(study, need) is None]
                to_come = {other.key for other in left} | {item.job.key for item in pool.running}
                if not missing and pool.free:
                    left.remove(job)
                    pool.start(job)
                elif not set(missing) <= to_come:
                    left.remove(job)
                    pool.fail(job, f'it needs {", ".join(missing)}')
            pool.look()
            time.sleep(LOOK if pool.running else 0)
    except BaseException:
        pool.stop()
        raise
    write_results(study)
    if pool.failed:
        raise Failures('; '.join(f'{key}: {reason}' for key, reason in pool.failed.items()))


def write_results(study: Study, others: Sequence[str | Path] = ()) -> Table:
    """Write table.md, results.json and accuracy.png from what is finished.

    Args:
        study: The study.
        others: Files ``results.json`` of the same study on other machines, for runs and seeds that are not here.

    Returns:
        The table.
    """
    table = collect(study)
    for path in others:
        table.add(path)
    order = {name: place for place, name in enumerate(study.runs)}
    table.rows.sort(key=lambda row: order.get(row.run, len(order)))
    if not table.rows:
        return table
    write_json(study.out / 'results.json', table.as_dict())
    (study.out / 'table.md').write_text(f'# {table.title}\n\n{table.markdown()}\n', encoding='utf-8')
    draw_study(table.as_dict(), study.out / 'accuracy.png')
    return table


def log(text: str) -> None:
    """Log a line."""
    print_log(text, logger='current')


class _Pool:
    """Processes that run at once."""

    def __init__(self, study: Study, slots: Sequence[Slot], count: int) -> None:
        self.study = study
        self.free = list(slots)
        self.places = len(slots)
        self.running: list[_Running] = []
        self.failed: dict[str, str] = {}
        self.count = count  # of jobs that were not done at the start
        self.ended = 0
        self.times: list[float] = []  # of processes

    def start(self, job: Job) -> None:
        """Start a job whose needs are done."""
        folder = self.study.out / job.key
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SPEC, spec_of(self.study, job))
        try:
            if job.probe is None and (job.run.untrained or job.run.weights):
                take_weights(self.study, job)
                self.ended += 1
                log(f'{job.key}: done, {self.left()}')
                return
            slot = self.free[0]
            wait_until_free(folder)  # of a process of a killed study
            command = command_of(self.study, job, slot)
        except (ConfigError, OSError) as error:
            self.fail(job, str(error))
            return
        self.free.remove(slot)
        console = open(folder / CONSOLE, 'a', encoding='utf-8')  # noqa: SIM115  open as long as the process
        begin = console.tell()
        process = subprocess.Popen(
            command, stdout=console, stderr=subprocess.STDOUT, env=environment(slot), preexec_fn=as_child(slot)
        )
        self.running.append(_Running(job, process, console, slot, time.monotonic(), begin))
        log(f'{job.key}: started, {self.left()}')

    def look(self) -> None:
        """Take note of processes that have ended."""
        for item in list(self.running):
            status = item.process.poll()
            if status is None:
                continue
            self.running.remove(item)
            self.free.append(item.slot)
            item.console.close()
            self._ended(item, status)

    def stop(self) -> None:
        """Interrupt the processes, which save and end."""
        for item in self.running:
            item.process.send_signal(signal.SIGTERM)
        for item in self.running:
            item.process.wait()
            item.console.close()

    def left(self) -> str:
        """How much is left, in words."""
        count = self.count - self.ended - len(self.failed)
        jobs = f'{count} of {self.count} jobs left'
        if not self.times:
            return jobs
        seconds = sum(self.times) / len(self.times) * count / self.places
        return f'{jobs}, about {timedelta(seconds=round(seconds))}'

    def _ended(self, item: _Running, status: int) -> None:
        if status != 0:
            console = self.study.out / item.job.key / CONSOLE
            self.fail(item.job, f'status {status}: {_last_error(console, item.begin)} ({console})')
            return
        try:
            result = finish(self.study, item.job)
        except (ConfigError, OSError) as error:
            self.fail(item.job, str(error))
            return
        self.ended += 1
        self.times.append(time.monotonic() - item.start)
        found = ', '.join(f'{name} {value:.1f}' for name, value in result.get('metrics', {}).items())
        log(f'{item.job.key}: done ({found or str(result["steps"]) + " steps"}), {self.left()}')
        try:
            write_results(self.study)
        except OSError as error:  # as of a full disk; the runs go on
            print_log(f'no table: {error}', logger='current', level=40)

    def fail(self, job: Job, reason: str) -> None:
        """Take note of a job that cannot run, or has failed."""
        self.failed[job.key] = reason
        print_log(f'{job.key} failed: {reason}', logger='current', level=40)


def _last_error(console: Path, begin: int) -> str:
    """The line that says what went wrong, in the output since the last start."""
    text = console.read_bytes()[begin:].decode(errors='replace')
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if 'rror' in line), lines[-1] if lines else 'no output')
