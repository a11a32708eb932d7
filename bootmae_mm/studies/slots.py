"""What one process of a study may use: cores, threads and GPUs."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from bootmae_mm.validation import require


@dataclass(frozen=True)
class Slot:
    """What one process at a time may use."""

    cores: tuple[int, ...]
    threads: int
    gpus: tuple[int, ...] = ()


def make_slots(jobs: int | None = None, threads: int | None = None, gpus_per_run: int = 1) -> list[Slot]:
    """Divide this machine.

    Args:
        jobs: Number of processes at once; default: one for each ``gpus_per_run`` GPUs, or one.
        threads: CPU threads of a process; default: its share of the cores.
        gpus_per_run: GPUs of a run.

    Raises:
        ConfigError: If there are fewer cores or GPUs.
    """
    import torch

    gpus = torch.cuda.device_count()
    for name, value in dict(jobs=jobs, threads=threads, gpus_per_run=gpus_per_run).items():
        require(value is None or value >= 1, f'{name} must be at least 1, but is {value}')
    places = gpus // gpus_per_run if gpus else 1
    require(places, f'gpus_per_run={gpus_per_run}, but this machine has {gpus} GPU(s)')
    count = jobs or places
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else list(range(os.cpu_count() or 1))
    require(count <= len(cores), f'{count} jobs at once, but {len(cores)} CPU cores')
    require(not gpus or count <= places, f'{count} jobs of {gpus_per_run} GPU(s) at once, but {gpus} GPU(s)')
    share = len(cores) // count
    return [
        Slot(
            cores=tuple(cores[place * share : (place + 1) * share]),
            threads=threads or max(1, share // (gpus_per_run if gpus else 1)),
            gpus=tuple(range(place * gpus_per_run, (place + 1) * gpus_per_run)) if gpus else (),
        )
        for place in range(count)
    ]


def environment(slot: Slot) -> dict[str, str]:
    """Environment of a process."""
    given = {**os.environ, 'OMP_NUM_THREADS': str(slot.threads), 'PYTHONUNBUFFERED': '1'}
    if slot.gpus:
        visible = os.environ.get('CUDA_VISIBLE_DEVICES')
        names = visible.split(',') if visible else list(map(str, range(max(slot.gpus) + 1)))
        given['CUDA_VISIBLE_DEVICES'] = ','.join(names[gpu] for gpu in slot.gpus)
    return given


def as_child(slot: Slot) -> Callable[[], None] | None:
    """What a process does first: keep to its cores, and end with the study, also with a killed one."""
    if sys.platform != 'linux':
        return None
    libc = ctypes.CDLL(None)

    def setup() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: runs save a checkpoint and end
        os.sched_setaffinity(0, slot.cores)

    return setup
