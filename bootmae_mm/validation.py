"""Types and ranges of config values, declared beside the parameters and checked in one place.

A constructor states what it takes in its signature::

    @validated
    def __init__(self, ratio: Share = 0.75, strategy: Literal['mix', 'block'] = 'mix') -> None:

Values that do not fit become a :class:`ConfigError` of one line that begins with the key. What stays as a ``raise`` in
the code are relations between values, and files.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import BeforeValidator, Field, ValidationError

MAX_COUNT = 10**9  # a larger count is a mistake, named before it fills the memory
MAX_SIDE = 2**16  # of an image in pixels; also the largest width of a token
MAX_PATCHES = 2**18  # of an image
MAX_CHANNELS = 512  # of an image

T = TypeVar('T')
STRICT = pydantic.ConfigDict(
    strict=True, arbitrary_types_allowed=True, allow_inf_nan=False, extra='forbid', validate_default=True
)


class ConfigError(ValueError):
    """A user's mistake, told in one line."""


class MissingFileError(ConfigError, FileNotFoundError):
    """A file or folder that a user has named and that is not there."""

    __str__ = ConfigError.__str__


def require(condition: object, message: str) -> None:
    """Check a relation between values.

    Raises:
        ConfigError: With the message, unless the condition holds.
    """
    if not condition:
        raise ConfigError(message)


def _as_pair(value: Any) -> Any:
    """One number for both sides, or two numbers."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError('must be a positive int or a pair of them')
    return tuple(value)


Natural = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Few = Annotated[int, Field(ge=1, le=1000)]  # of what multiplies memory: layers, masks per image
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Size = Annotated[tuple[Side, Side], BeforeValidator(_as_pair)]  # (height, width), also given as one number
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Pair = Annotated[tuple[T, T], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]


class Options(pydantic.BaseModel):
    """A dict of a config whose keys, types and ranges are declared as fields."""

    model_config = STRICT

    @pydantic.model_validator(mode='before')
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        if isinstance(values, dict) and (unknown := sorted(set(values) - set(cls.model_fields))):
            raise ValueError(f'has unknown option(s) {unknown}; valid options: {", ".join(cls.model_fields)}')
        return values


def validated(function: Callable[..., T]) -> Callable[..., T]:
    """Check the arguments of a function, usually a constructor, against its annotations.

    Numbers must be finite, ``True`` is not a number, and strings are not converted.

    Raises:
        ConfigError: For the first argument that does not fit.
    """
    checked = pydantic.validate_call(config=STRICT)(function)
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> T:
        try:
            return checked(*args, **kwargs)
        except ValidationError as error:
            raise ConfigError(_message(error, names)) from None

    return wrapper


def parse(kind: type[T], values: Any, key: str) -> T:
    """Check a value of a config against a type.

    Args:
        kind: Type with its range, such as :data:`Count` or a subclass of :class:`Options`.
        values: Value to check.
        key: Key of the value, for the message.

    Raises:
        ConfigError: If the value does not fit.
    """
    try:
        config = None if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel) else STRICT
        return pydantic.TypeAdapter(kind, config=config).validate_python(values)
    except ValidationError as error:
        raise ConfigError(_message(error, [], key)) from None


def _message(error: ValidationError, names: Sequence[str], prefix: str = '') -> str:
    """One line on the first thing that is wrong: ``depth must be greater than or equal to 1, but is 0``."""
    first = error.errors()[0]
    parts = list(first['loc'])
    if parts and isinstance(parts[0], int) and parts[0] < len(names):
        parts[0] = names[parts[0]]  # of an argument that was given by position
    key = '.'.join(map(str, [*([prefix] if prefix else []), *parts]))
    if first['type'].startswith('missing'):
        return f'{key} is missing'
    if first['type'] == 'unexpected_positional_argument':
        return f'at most {len(names) - 1} arguments are allowed: {", ".join(names[1:])}'
    if first['type'] == 'multiple_argument_values':
        return f'{key} is given twice'
    if first['type'] == 'unexpected_keyword_argument':
        return f'{key} is not a valid option; valid options: {", ".join(names[1:])}'
    text = re.sub(r'^(Input|Tuple|List|Dictionary|String) should', 'must', first['msg'].removeprefix('Value error, '))
    if 'not allowed as a Sequence' in text:  # a str, of which a list of letters would be made
        text = 'must be a list'
    is_full = not text.startswith('must') or ' but is ' in text
    return f'{key} {text}' + ('' if is_full else f', but is {repr(first["input"])[:80]}')


def patch_grid(img_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches in an image of (height, width) pixels.

    Raises:
        ConfigError: If the image is not divisible by the patch, or has more than :data:`MAX_PATCHES`.
    """
    height, width = img_size
    rows, columns = height // patch_size, width // patch_size
    require(
        (rows * patch_size, columns * patch_size) == (height, width) and rows * columns <= MAX_PATCHES,
        f'img_size {height}x{width} must be divisible by patch_size {patch_size}, into at most {MAX_PATCHES} patches',
    )
    return rows, columns
