"""Schedules of BootMAE: pure functions of the position in a run, counted from 0."""

from __future__ import annotations

from collections.abc import Sequence

from bootmae_mm.validation import require


def piecewise_linear(epoch: float, milestones: Sequence[tuple[float, float]]) -> float:
    """Linear between milestones, constant before the first and after the last.

    Args:
        epoch: Position at which to evaluate.
        milestones: At least one ``(epoch, value)``, with strictly increasing epochs.

    Raises:
        ConfigError: If there are none, or they do not increase.
    """
    rising = all(a[0] < b[0] for a, b in zip(milestones, milestones[1:], strict=False))
    require(milestones and rising, f'decay needs (epoch, value) pairs with increasing epochs, but is {milestones}')
    if epoch <= milestones[0][0]:
        return milestones[0][1]
    for (begin, low), (end, high) in zip(milestones, milestones[1:], strict=False):
        if epoch < end:
            return low + (epoch - begin) / (end - begin) * (high - low)
    return milestones[-1][1]


def feature_weight(position: int, length: float, weight: float = 1.0, ramp: float = 0.25) -> float:
    """Weight of the feature loss, which rises linearly over the first part of training.

    ``min((position + 1) / (ramp * length), 1) * weight``; the authors' ``run_pretraining.py`` has a ramp of 1/4.

    Args:
        position: Current epoch or iteration.
        length: Number of epochs or iterations of the run.
        weight: Final value.
        ramp: Share of the run over which it rises; 0 for a constant weight.
    """
    if ramp <= 0:
        return weight
    return min((position + 1) / (ramp * length), 1.0) * weight
