"""A study on a cluster: one Slurm array for the jobs that need nothing, then one for those that need them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence

from bootmae_mm.validation import ConfigError

from .plan import Job, Study
from .results import done

SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --output="{folder}/%A_%a.log"
jobs=({jobs})
exec {command} --job "${{jobs[$SLURM_ARRAY_TASK_ID]}}"
"""


def levels(study: Study, jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs in groups: each needs only jobs of the groups before it, or finished ones."""
    level: dict[str, int] = {}
    groups: list[list[Job]] = []
    for job in jobs:  # sorted: what a job needs comes before it
        place = 1 + max((level[need.key] for need in study.needs(job) if need.key in level), default=-1)
        level[job.key] = place
        groups += [[]] if place == len(groups) else []
        groups[place].append(job)
    return groups


def submit(study: Study, command: Sequence[str], sbatch_options: str, jobs: Sequence[Job] | None = None) -> list[str]:
    """Submit what is not finished with ``sbatch``.

    Args:
        study: The study.
        command: Command line of this study, to which ``--job KEY`` is added.
        sbatch_options: Options for sbatch: partition, GPUs, time.
        jobs: Jobs to run; default: all.

    Returns:
        Number of the Slurm job of each array.

    Raises:
        ConfigError: If sbatch or the images are missing, or sbatch refuses.
    """
    study.check_data()
    folder = (study.out / 'slurm').resolve()
    folder.mkdir(parents=True, exist_ok=True)
    left = [job for job in (study.jobs() if jobs is None else jobs) if done(study, job) is None]
    numbers: list[str] = []
    for place, group in enumerate(levels(study, left)):
        script = folder / f'jobs_{place}.sh'  # sbatch takes a copy
        script.write_text(
            SCRIPT.format(
                name=shlex.quote(f'{study.out.name}_{place}'),
                last=len(group) - 1,
                folder=folder,
                jobs=shlex.join(job.key for job in group),
                command=shlex.join([sys.executable, '-m', 'bootmae_mm', 'study', *command]),
            ),
            encoding='utf-8',
        )
        # Also after a failure: a job whose needs are missing says so, and others may run.
        after = [f'--dependency=afterany:{numbers[-1]}'] if numbers else []
        numbers.append(_sbatch([*shlex.split(sbatch_options), *after, str(script)]))
    return numbers


def _sbatch(arguments: Sequence[str]) -> str:
    try:
        made = subprocess.run(['sbatch', '--parsable', *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise ConfigError('there is no sbatch on this machine: --slurm is for a login node of a cluster') from None
    except subprocess.CalledProcessError as error:
        raise ConfigError(f'sbatch refused: {" ".join(error.stderr.split())}') from None
    return made.stdout.strip().split(';')[0]
