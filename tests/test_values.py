"""Values of a config: good ones pass unchanged, others are named with what is wanted."""

import math

import numpy as np
import pytest

from bootmae_mm.values import integer, number


@pytest.mark.parametrize('value', [1, 6, np.int64(3)])
def test_integers(value):
    assert integer(value, 'depth', 1, 6) == value and type(integer(value, 'depth')) is int


@pytest.mark.parametrize('value', [0, 7, 2.0, 2.5, '2', True, None, math.nan, [2]])
def test_other_values_are_no_integers(value):
    with pytest.raises(ValueError, match=r'depth must be an int in 1\.\.6, but is '):
        integer(value, 'depth', 1, 6)


@pytest.mark.parametrize('value', [10**9 + 1, 10**400])
def test_counts_that_would_fill_the_memory(value):
    with pytest.raises(ValueError, match='depth must be at most 1000000000, but is 10') as caught:
        integer(value, 'depth', least=1)
    assert len(str(caught.value)) < 80
    assert integer(10**9, 'depth') == 10**9
    assert integer(value, 'seed', most=10**500) == value


@pytest.mark.parametrize('value', [0, 0.5, 1, np.float32(0.25)])
def test_numbers(value):
    assert number(value, 'ratio', least=0, most=1) == value


@pytest.mark.parametrize('value', [-0.1, 1.1, math.nan, math.inf, -math.inf, 10**400, '0.5', True, None])
def test_other_values_are_no_numbers(value):
    with pytest.raises(ValueError, match='ratio must be a number in 0..1, but is '):
        number(value, 'ratio', least=0, most=1)


def test_bounds_that_are_left_out():
    with pytest.raises(ValueError, match='lr must be a number > 0 and < 1, but is 1'):
        number(1, 'lr', above=0, below=1)
    with pytest.raises(ValueError, match='lr must be a number > 0, but is 0'):
        number(0, 'lr', above=0)
    with pytest.raises(ValueError, match='count must be an int >= 2, but is 1'):
        integer(1, 'count', least=2)
    with pytest.raises(ValueError, match='epoch must be a number, but is nan'):
        number(math.nan, 'epoch')
    assert number(-3, 'epoch') == -3 and integer(-3, 'index', most=0) == -3
