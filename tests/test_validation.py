"""Validation: valid values pass, and others are named in one line with what is allowed."""

import math
from typing import Literal

import numpy as np
import pytest

from bootmae_mm.validation import (
    MAX_PATCHES,
    MAX_SIDE,
    ConfigError,
    Count,
    Few,
    MissingFileError,
    Natural,
    NonNegative,
    Options,
    Pair,
    Positive,
    PositiveShare,
    Rate,
    Share,
    Side,
    Size,
    parse,
    patch_grid,
    require,
    validated,
)


@pytest.mark.parametrize('value', [1, 6, 10**9])
def test_counts(value):
    found = parse(Count, value, 'depth')
    assert found == value and type(found) is int


@pytest.mark.parametrize('value', [2.0, 2.5, '2', True, None, math.nan, [2], np.int64(3)])
def test_other_types_are_not_counts(value):
    with pytest.raises(ConfigError, match='^depth must be a valid integer, but is ') as caught:
        parse(Count, value, 'depth')
    assert str(caught.value).endswith(repr(value))


@pytest.mark.parametrize('value', [10**9 + 1, 10**400])
def test_counts_that_would_fill_the_memory(value):
    with pytest.raises(ConfigError, match='depth must be less than or equal to 1000000000, but is 10') as caught:
        parse(Count, value, 'depth')
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    ('kind', 'lowest', 'highest'), [(Natural, 0, 10**9), (Count, 1, 10**9), (Few, 1, 1000), (Side, 1, 2**16)]
)
def test_ranges_of_integers(kind, lowest, highest):
    assert parse(kind, lowest, 'x') == lowest and parse(kind, highest, 'x') == highest
    with pytest.raises(ConfigError, match=f'^x must be greater than or equal to {lowest}, but is {lowest - 1}$'):
        parse(kind, lowest - 1, 'x')
    with pytest.raises(ConfigError, match=f'^x must be less than or equal to {highest}, but is {highest + 1}$'):
        parse(kind, highest + 1, 'x')


@pytest.mark.parametrize('value', [0, 0.5, 1, np.float32(0.25), np.float64(0.25)])
def test_shares(value):
    found = parse(Share, value, 'ratio')
    assert found == value and type(found) is float


@pytest.mark.parametrize('value', [-0.1, 1.1, math.nan, math.inf, -math.inf, 10**400, '0.5', True, None])
def test_other_values_are_not_shares(value):
    with pytest.raises(ConfigError, match='^ratio must be .*, but is ') as caught:
        parse(Share, value, 'ratio')
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    ('kind', 'good', 'bad', 'message'),
    [
        (PositiveShare, [1e-9, 1], [0, 1.01], ['greater than 0', 'less than or equal to 1']),
        (Rate, [0, 0.99], [-0.01, 1], ['greater than or equal to 0', 'less than 1']),
        (NonNegative, [0, 1e30], [-1e-9], ['greater than or equal to 0']),
        (Positive, [1e-30, 1e30], [0], ['greater than 0']),
    ],
)
def test_ranges_of_numbers(kind, good, bad, message):
    assert [parse(kind, value, 'x') for value in good] == good
    for value, text in zip(bad, message, strict=True):
        with pytest.raises(ConfigError, match=f'^x must be {text}, but is {value}$'):
            parse(kind, value, 'x')
    for value in (math.nan, math.inf):
        with pytest.raises(ConfigError, match=f'^x must be a finite number, but is {value}$'):
            parse(kind, value, 'x')


@pytest.mark.parametrize(
    ('value', 'wanted'), [(14, (14, 14)), ((4, 6), (4, 6)), ([4, 6], (4, 6)), (MAX_SIDE, (MAX_SIDE, MAX_SIDE))]
)
def test_sizes(value, wanted):
    assert parse(Size, value, 'grid_size') == wanted


@pytest.mark.parametrize('value', [(1, 2, 3), (1,), '14', True, 1.5, None, {4: 6}])
def test_other_values_are_not_sizes(value):
    with pytest.raises(ConfigError, match='^grid_size must be .*pair.*, but is '):
        parse(Size, value, 'grid_size')


@pytest.mark.parametrize(
    ('value', 'side', 'message'),
    [
        (0, 0, 'must be greater than or equal to 1, but is 0'),
        ((3, -1), 1, 'must be greater than or equal to 1, but is -1'),
        (MAX_SIDE + 1, 0, f'must be less than or equal to {MAX_SIDE}, but is {MAX_SIDE + 1}'),
        ((True, 3), 0, 'must be a valid integer, but is True'),
        ((3, 2.0), 1, 'must be a valid integer, but is 2.0'),
        ((3, '4'), 1, "must be a valid integer, but is '4'"),
    ],
)
def test_sides_of_a_size(value, side, message):
    with pytest.raises(ConfigError, match=f'^grid_size.{side} {message}$'):
        parse(Size, value, 'grid_size')


def test_pairs():
    assert parse(Pair[float], [1, 2.5], 'x') == parse(Pair[float], (1, 2.5), 'x') == (1.0, 2.5)
    for value in ([1], (1, 2, 3), 'ab', 3, None):
        with pytest.raises(ConfigError, match='^x'):
            parse(Pair[float], value, 'x')
    for value in ('a', True, None):
        with pytest.raises(ConfigError, match=f'^x.0 must be a valid number, but is {value!r}$'):
            parse(Pair[float], (value, 1), 'x')
    with pytest.raises(ConfigError, match='^x.1 must be a finite number, but is inf$'):
        parse(Pair[float], (1, math.inf), 'x')


class Decoder(Options):
    width: Side
    depth: Few = 2


def test_options():
    assert parse(Decoder, dict(width=8), 'pixel') == Decoder(width=8, depth=2)
    assert parse(Decoder, dict(width=8, depth=3), 'pixel').model_dump() == dict(width=8, depth=3)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (dict(widht=8, deep=1), r"pixel has unknown option\(s\) \['deep', 'widht'\]; valid options: width, depth"),
        (dict(), 'pixel.width is missing'),
        (dict(width='8'), "pixel.width must be a valid integer, but is '8'"),
        (dict(width=8, depth=0), 'pixel.depth must be greater than or equal to 1, but is 0'),
        (5, 'pixel must be a valid dictionary .*, but is 5'),
    ],
)
def test_options_that_do_not_fit(values, message):
    with pytest.raises(ConfigError, match=f'^{message}$'):
        parse(Decoder, values, 'pixel')


def test_options_of_the_top_level_have_no_prefix():
    with pytest.raises(ConfigError, match='^width must be greater than or equal to 1, but is 0$'):
        parse(Decoder, dict(width=0), '')


class Component:
    """A component with one parameter of each kind."""

    @validated
    def __init__(
        self,
        ratio: Share = 0.75,
        grid_size: Size = (14, 14),
        strategy: Literal['mix', 'block'] = 'mix',
        decoder: Decoder | None = None,
        flag: bool = False,
    ) -> None:
        self.values = ratio, grid_size, strategy, decoder, flag


def test_arguments_of_a_validated_constructor():
    assert Component().values == (0.75, (14, 14), 'mix', None, False)
    assert Component(1, 7, flag=True).values == (1.0, (7, 7), 'mix', None, True)
    assert Component(decoder=dict(width=8)).values[3] == Decoder(width=8)
    assert Component.__init__.__name__ == '__init__'


@pytest.mark.parametrize(
    ('arguments', 'options', 'message'),
    [
        ((2,), {}, 'ratio must be less than or equal to 1, but is 2'),
        ((0.5, (0, 3)), {}, 'grid_size.0 must be greater than or equal to 1, but is 0'),
        ((), dict(ratio=None), 'ratio must be a valid number, but is None'),
        ((), dict(strategy='stripes'), "strategy must be 'mix' or 'block', but is 'stripes'"),
        ((), dict(flag=1), 'flag must be a valid boolean, but is 1'),
        ((), dict(decoder=dict(width=0)), 'decoder.width must be greater than or equal to 1, but is 0'),
        ((), dict(raito=0.5), 'raito is not a valid option; valid options: ratio, grid_size, strategy, decoder, flag'),
    ],
)
def test_wrong_arguments_are_named(arguments, options, message):
    with pytest.raises(ConfigError, match=f'^{message}$'):
        Component(*arguments, **options)


def test_too_many_positional_arguments_are_refused():
    with pytest.raises((ConfigError, TypeError), match='argument'):
        Component(0.5, 7, 'mix', None, False, 9)


def test_long_values_are_cut_in_the_message():
    with pytest.raises(ConfigError, match='^ratio must be a valid number, but is ') as caught:
        Component('x' * 10_000)
    assert len(str(caught.value)) < 150 and '\n' not in str(caught.value)


def test_relations_between_values():
    assert require(True, 'a fits b') is None
    for condition in (False, None, 0, []):
        with pytest.raises(ConfigError, match='^a must fit b$'):
            require(condition, 'a must fit b')


def test_kinds_of_errors():
    assert issubclass(ConfigError, ValueError)
    error = MissingFileError('no checkpoint x.pth')
    assert isinstance(error, ConfigError) and isinstance(error, FileNotFoundError)
    assert str(error) == 'no checkpoint x.pth'


@pytest.mark.parametrize(
    ('img_size', 'patch_size', 'wanted'),
    [((224, 224), 16, (14, 14)), ((224, 384), 16, (14, 24)), ((32, 48), 8, (4, 6)), ((8192, 8192), 16, (512, 512))],
)
def test_patch_grid(img_size, patch_size, wanted):
    assert patch_grid(img_size, patch_size) == wanted


@pytest.mark.parametrize(
    ('img_size', 'patch_size'), [((30, 30), 8), ((32, 30), 8), ((30, 32), 8), ((8, 8), 16), ((8192, 8208), 16)]
)
def test_impossible_patch_grids(img_size, patch_size):
    height, width = img_size
    message = f'^img_size {height}x{width} must be divisible by patch_size {patch_size}, .* at most {MAX_PATCHES} '
    with pytest.raises(ConfigError, match=message):
        patch_grid(img_size, patch_size)
