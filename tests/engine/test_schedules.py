"""Schedules of the decay and of the feature loss, compared with the authors'."""

import pytest

from bootmae_mm.engine.schedules import feature_weight, piecewise_linear
from bootmae_mm.validation import ConfigError

BASE = [(0, 0.999), (100, 0.9999), (400, 0.99999)]


def authors_decay(epoch, dynamic):
    """``adjust_ema_momentum`` of the authors' utils.py."""
    if epoch < 100:
        return 0.999 + epoch / 100 * (0.9999 - 0.999)
    return 0.9999 + min(300, epoch - 100) / 300 * (0.99999 - 0.9999) if dynamic else 0.9999


@pytest.mark.parametrize('epoch', [0, 1, 50, 99, 100, 101, 250, 399, 400, 401, 799])
def test_decay_at_every_breakpoint(epoch):
    assert piecewise_linear(epoch, BASE) == pytest.approx(authors_decay(epoch, True), abs=1e-12)
    assert piecewise_linear(epoch, BASE[:2]) == pytest.approx(authors_decay(epoch, False), abs=1e-12)


def test_constant_outside():
    assert piecewise_linear(-5, [(2, 0.3), (4, 0.5)]) == 0.3
    assert piecewise_linear(3, [(2, 0.3), (4, 0.5)]) == pytest.approx(0.4)
    assert piecewise_linear(9, [(2, 0.3), (4, 0.5)]) == 0.5
    assert piecewise_linear(9, [(0, 0.3)]) == 0.3


@pytest.mark.parametrize('milestones', [[], [(3, 0.1), (3, 0.2)], [(3, 0.1), (1, 0.2)]])
def test_impossible_milestones(milestones):
    with pytest.raises(ConfigError, match='pairs with increasing epochs, but'):
        piecewise_linear(0, milestones)


@pytest.mark.parametrize('epoch', [0, 1, 100, 198, 199, 200, 799])
def test_feature_weight_is_the_authors(epoch):
    wanted = min(4 * (epoch + 1) / 800, 1.0) * 0.7
    assert feature_weight(epoch, 800, 0.7) == pytest.approx(wanted)


def test_feature_weight_is_constant_after_a_quarter_or_without_a_ramp():
    assert feature_weight(198, 800) < 1 == feature_weight(199, 800)
    assert feature_weight(0, 800, 0.3, ramp=0) == 0.3
