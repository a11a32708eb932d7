"""Timing on a CPU or a GPU: warm-up, medians, name and peak performance of the device."""

from __future__ import annotations

import itertools
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

CALLS_A_TURN = 5


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Name of the device, such as ``'NVIDIA H200'`` or ``'AMD EPYC 9R14, 2 threads'``."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    info = Path('/proc/cpuinfo')
    names = [line.split(':', 1)[1].strip() for line in info.read_text().splitlines() if line.startswith('model name')]
    return f'{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads'


def mark(device: torch.device) -> float | torch.cuda.Event:
    """Time mark; on a GPU in its stream, without waiting for it."""
    if device.type != 'cuda':
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds_between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    """Seconds between two marks, which a GPU must have reached."""
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float) and isinstance(end, float)
        return end - start
    return start.elapsed_time(end) / 1e3


def seconds_of(function: Callable[[], object], device: torch.device, warmup: int, repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` calls, after ``warmup`` calls.

    As in training, a GPU is not waited for between calls.
    """
    for _ in range(warmup):
        function()
    synchronize(device)
    marks = [mark(device)]
    for _ in range(repeats):
        function()
        marks.append(mark(device))
    synchronize(device)
    return [seconds_between(*pair) for pair in itertools.pairwise(marks)]


def alternately(
    functions: dict[str, Callable[[], object]], device: torch.device, warmup: int, repeats: int
) -> dict[str, float]:
    """Median seconds of several functions, called in turns so that load on the machine affects all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            # On a GPU, the first call of a turn starts on an idle device; the others follow as in training.
            taken = seconds_of(function, device, 0, CALLS_A_TURN if device.type == 'cuda' else 1)
            if turn >= warmup:
                seconds[name].append(statistics.median(taken))
    return {name: statistics.median(values) for name, values in seconds.items()}


def matrix_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Peak FLOP/s of a large matrix product on this device, the best of ten."""
    side = 8192 if device.type == 'cuda' else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(seconds_of(lambda: a @ b, device, 3, 10))


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak of a GPU (that of a process cannot be reset)."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Peak bytes allocated on the GPU, or resident for this process."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_of(
    make: Callable[[], Callable[[], object]], device: torch.device
) -> tuple[Callable[[], object], int | None]:
    """Make a step and run it twice.

    Returns:
        The step, and its peak bytes on the GPU in the second run, when the optimizer has its state; None on a CPU,
        where the peak of a process cannot be attributed.
    """
    if device.type != 'cuda':
        return make(), None
    before = torch.cuda.memory_allocated(device)
    step = make()
    step()
    reset_peak_memory(device)
    step()
    synchronize(device)
    return step, peak_memory(device) - before


class Stopwatch:
    """Sums the time of parts of a program.

    Args:
        device: Device to time; a GPU is not waited for until :attr:`seconds` is read.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, float | torch.cuda.Event, float | torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``."""
        start = mark(self.device)
        yield
        self._marks.append((name, start, mark(self.device)))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each part."""
        synchronize(self.device)
        sums: dict[str, float] = {}
        for name, start, end in self._marks:
            sums[name] = sums.get(name, 0.0) + seconds_between(start, end)
        return sums

    @contextmanager
    def watching(self, *methods: tuple[object, str, str]) -> Iterator[None]:
        """Within the block, add the time of each call of some methods.

        Args:
            *methods: Tuples of object, method name and part name.
        """
        for owner, method, name in methods:
            setattr(owner, method, self._timed(getattr(owner, method), name))
        try:
            yield
        finally:
            for owner, method, _ in methods:
                delattr(owner, method)

    def _timed(self, function: Callable, name: str) -> Callable:
        def timed(*args: object, **kwargs: object) -> object:
            with self.part(name):
                return function(*args, **kwargs)

        return timed
