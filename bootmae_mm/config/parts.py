"""Building what a config describes, each part of a known kind."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from mmengine.registry import Registry

from bootmae_mm.validation import ConfigError, require

T = TypeVar('T')


def class_of(config: Any, kind: type, key: str, registry: Registry) -> Any:  # noqa: ANN401
    """The registered class that a config names.

    Raises:
        ConfigError: If the config is no dict with a ``type``, or the type is unknown or of another kind.
    """
    name = config.get('type') if isinstance(config, dict) else None
    require(name is not None, f'{key} must be a dict with a type, but is {config!r}')
    found = registry.get(name) if isinstance(name, str) else name
    is_kind = inspect.isclass(found) and issubclass(found, kind)
    require(is_kind, f'{key}.type must be a {kind.__name__}, but is {name!r}')
    return found


def build_part(config: Any, kind: type[T], key: str, registry: Registry, **facts: Any) -> T:  # noqa: ANN401
    """Build a part from its config.

    Args:
        config: Its config.
        kind: Class that it must be, or inherit from.
        key: Key of the config, for messages.
        registry: Registry that has it.
        **facts: Arguments that the config need not have.

    Raises:
        ConfigError: If the config does not fit; the message begins with the key.
    """
    class_of(config, kind, key, registry)
    try:
        return registry.build(config, default_args=facts)
    except ConfigError as error:
        raise ConfigError(f'{key} (type {config["type"]!r}): {error}') from error
