"""Schedules of BootMAE, pure functions of the epoch (counted from 0)."""

from __future__ import annotations

from collections.abc import Sequence


def piecewise_linear(epoch: float, milestones: Sequence[tuple[float, float]]) -> float:
    """Linear between milestones, constant before the first and after the last.

    Args:
        epoch: Where to look.
        milestones: ``(epoch, value)``, at least one, epochs strictly rising.

    Raises:
        ValueError: If there are none, or they do not rise.
    """
    if not milestones or any(a[0] >= b[0] for a, b in zip(milestones, milestones[1:], strict=False)):
        raise ValueError(f'milestones must be (epoch, value) pairs with rising epochs, but are {milestones}')
    if epoch <= milestones[0][0]:
        return milestones[0][1]
    for (begin, low), (end, high) in zip(milestones, milestones[1:], strict=False):
        if epoch < end:
            return low + (epoch - begin) / (end - begin) * (high - low)
    return milestones[-1][1]


def feature_weight(position: int, length: float, weight: float = 1.0, ramp: float = 0.25) -> float:
    """Weight of the feature loss, rising linearly over the first part of training.

    ``min((position + 1) / (ramp * length), 1) * weight``, as in ``run_pretraining.py`` of the authors for a ramp of a
    quarter.

    Args:
        position: Current epoch or iteration.
        length: Epochs or iterations of the run.
        weight: Final value.
        ramp: Share of the run it takes to rise; 0 for a constant weight.
    """
    if ramp <= 0:
        return weight
    return min((position + 1) / (ramp * length), 1.0) * weight
