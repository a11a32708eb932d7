"""Progress bars with the time left, on a terminal only: a log file has no use for them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def is_terminal(stream: object) -> bool:
    """Whether a stream is a terminal; notebooks and loggers may replace streams by objects that cannot tell."""
    isatty = getattr(stream, 'isatty', None)
    return bool(isatty and isatty())


def make_progress() -> Progress:
    """A bar with share, time taken, time left and a text; lines that are logged appear above it."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn('{task.description}'), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    left = (TextColumn('left'), TimeRemainingColumn(), TextColumn('{task.fields[text]}'))
    # A step may take seconds: the speed is that of the last minutes.
    return Progress(*columns, *left, speed_estimate_period=300, refresh_per_second=2)


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Within the block, show a bar; the function it gives advances it by a number of steps.

    Args:
        what: Text before the bar.
        total: Number of steps.
    """
    if not is_terminal(sys.stderr):
        yield lambda steps: None
        return
    from rich.console import Console

    progress = make_progress()
    progress.live.console = Console(stderr=True)
    with progress:
        task = progress.add_task(what, total=total, text='')
        yield lambda steps: progress.advance(task, steps)
