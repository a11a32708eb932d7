"""The config that mmengine writes into a checkpoint, read as data.

``Config.fromstring`` would run the text as Python. mmengine writes only assignments of literals and ``dict(...)``, and
nothing else is accepted here.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from typing import Any

from mmengine.config import Config

from bootmae_mm.validation import ConfigError, require


def config_of(checkpoint: dict) -> Config:
    """The config in a checkpoint. Its ``model`` may only have registered components.

    Raises:
        ConfigError: If there is no config, or it holds something else.
    """
    values = saved_config(checkpoint)
    require(values is not None, 'the checkpoint holds no config; give one with --config')
    assert values is not None
    check_types(values.get('model'))
    return Config(values)


def saved_config(checkpoint: dict) -> dict[str, Any] | None:
    """The values of the config in a checkpoint, or None if there is none.

    Raises:
        ConfigError: If it holds anything but assignments of literals.
    """
    text = checkpoint.get('meta', {}).get('cfg')
    if not isinstance(text, str):
        return None
    try:
        return dict(_assignment(statement) for statement in ast.parse(text).body)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ConfigError(f'the config in the checkpoint must be assignments of literals: {error}') from error


def _assignment(statement: ast.stmt) -> tuple[str, Any]:
    target = statement.targets[-1] if isinstance(statement, ast.Assign) else None
    if not isinstance(statement, ast.Assign) or len(statement.targets) > 1 or not isinstance(target, ast.Name):
        raise ValueError(f'line {statement.lineno} is not an assignment to a name')
    return target.id, _literal(statement.value)


def _literal(node: ast.expr) -> Any:  # noqa: ANN401
    """The value of a literal, which may be written as ``dict(a=1)`` or ``dict({'a.b': 1}, c=2)``."""
    if isinstance(node, ast.Call):
        is_dict = isinstance(node.func, ast.Name) and node.func.id == 'dict' and len(node.args) < 2
        if is_dict and all(isinstance(argument, ast.Dict) for argument in node.args):
            given = _literal(node.args[0]) if node.args else {}
            return given | {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_literal(item) for item in node.elts)
    if isinstance(node, ast.Dict):
        return {
            _literal(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True) if key is not None
        }
    return ast.literal_eval(node)  # a ValueError for anything that is not a literal


def check_types(node: Any) -> None:  # noqa: ANN401
    """Refuse types that are not registered components.

    mmengine imports modules and calls what a dotted name refers to; for a ``_scope_`` it imports the registry.
    """
    if isinstance(node, dict):
        kind = node.get('_scope_', node.get('type', ''))
        is_name = isinstance(kind, str) and '.' not in kind.removeprefix('bootmae_mm.') and not _is_module(kind)
        require(
            is_name and '_scope_' not in node,
            f'the config in the checkpoint refers to {kind!r}, which could execute arbitrary code; give a config with '
            '--config',
        )
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            check_types(value)


def _is_module(name: str) -> bool:
    """Whether importing a name would run code; a plain folder has none."""
    if name in sys.modules:
        return True
    spec = importlib.util.find_spec(name) if name and '.' not in name else None
    return spec is not None and spec.origin is not None
