"""Checks of values that come from a config, which may hold anything: of the right kind, in range, named if not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

# No count in a config is larger: a mistake is named here, before it fills the memory.
MOST = 10**9
MAX_SIDE = 2**16  # of an image in pixels, and of a token


def integer(value: Any, name: str, least: int | None = None, most: int | None = None) -> int:
    """An int between two others, both included.

    Args:
        value: To check.
        name: Of the config's key.
        least: Smallest value; None for any.
        most: Largest value; None for :data:`MOST`.

    Returns:
        The value.

    Raises:
        ValueError: If it is another.
    """
    good = isinstance(value, Integral) and not isinstance(value, bool)
    if good and most is None and value > MOST:
        raise ValueError(f'{name} must be at most {MOST}, but is {str(value)[:20]}')
    if not good or (least is not None and value < least) or (most is not None and value > most):
        raise ValueError(f'{name} must be an int{_span(least, most)}, but is {value!r}')
    return int(value)


def number(
    value: Any,
    name: str,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """A finite number between two others.

    Args:
        value: To check.
        name: Of the config's key.
        least: Smallest value; None for any.
        most: Largest value; None for any.
        above: All that are good are larger.
        below: All that are good are smaller.

    Returns:
        The value.

    Raises:
        ValueError: If it is another.
    """
    good = isinstance(value, Real) and not isinstance(value, bool)
    if (
        not good
        or not -sys.float_info.max <= value <= sys.float_info.max  # an int may be larger than any float
        or (least is not None and value < least)
        or (most is not None and value > most)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    ):
        raise ValueError(f'{name} must be a number{_span(least, most, above, below)}, but is {value!r}')
    return value


def to_pair(size: int | tuple[int, int], name: str) -> tuple[int, int]:
    """Return ``(height, width)`` of an int or a pair of positive ints.

    Raises:
        ValueError: If ``size`` is neither, or larger than :data:`MAX_SIDE`; the message starts with ``name``.
    """
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    try:
        height, width = (integer(edge, name, 1, MAX_SIDE) for edge in pair)
    except ValueError as error:
        raise ValueError(f'{name} must be a positive int or a pair of them, but is {size!r}') from error
    return height, width


def check_bool(value: Any, name: str) -> bool:
    """True or False.

    Raises:
        ValueError: If it is anything else.
    """
    if not isinstance(value, bool):
        raise ValueError(f'{name} must be True or False, but is {value!r}')
    return value


def _span(least: float | None, most: float | None, above: float | None = None, below: float | None = None) -> str:
    """`` >= 1``, `` in 1..6``, `` > 0 and < 1``."""
    if isinstance(least, int) and isinstance(most, int):
        return f' in {least}..{most}'
    bounds = [('>=', least), ('>', above), ('<=', most), ('<', below)]
    return ''.join(
        f'{" " if i == 0 else " and "}{sign} {bound}'
        for i, (sign, bound) in enumerate((sign, bound) for sign, bound in bounds if bound is not None)
    )
