"""The files of a config: the names that each of them sets and uses."""

from __future__ import annotations

import ast
import site
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import load


@dataclass
class ConfigFile:
    """The names in one file of a chain of configs.

    Attributes:
        path: Path of the file.
        bases: Base files.
        is_lazy: Whether it imports its bases (``read_base``) instead of naming them.
        assigned: Names assigned or changed at the top level, including those of its bases (``_base_.NAME``).
        changed: Names changed in place.
        used: Names used in expressions.
        from_base: Names taken from its bases (``{{_base_.NAME}}``).
        expressions: Assigned expression (or value, for JSON and YAML) by name.
    """

    path: Path
    bases: list[ConfigFile] = field(default_factory=list)
    is_lazy: bool = False
    assigned: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    from_base: set[str] = field(default_factory=set)
    expressions: dict[str, Any] = field(default_factory=dict)

    def chain(self) -> Iterator[ConfigFile]:
        """This file and all its bases."""
        yield self
        for base in self.bases:
            yield from base.chain()

    def sets(self, key: str) -> bool:
        """Whether this file itself sets a dotted key."""
        name, *rest = key.split('.')
        if name in self.changed:
            return True
        node = self.expressions.get(name)
        for part in rest:
            if isinstance(node, dict):
                node = node.get(part)
            elif isinstance(node, ast.Call):
                node = next((keyword.value for keyword in node.keywords if keyword.arg == part), None)
            elif isinstance(node, ast.Dict):
                keys = [getattr(item, 'value', None) for item in node.keys]
                node = node.values[keys.index(part)] if part in keys else None
        return node is not None

    def values(self) -> dict[str, Any]:
        """Values that mmengine reads from this file and its bases."""
        return Config.fromfile(self.path)._cfg_dict

    @property
    def is_installed(self) -> bool:
        """Whether the file belongs to an installed package."""
        return any(root in self.path.parents for root in map(Path, site.getsitepackages()))


def config_files(path: str | Path) -> ConfigFile:
    """Parse a config file and its bases."""
    path = Path(path)
    file = ConfigFile(path.resolve())
    if path.suffix == '.py':
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for statement in tree.body:
            _note_names(statement, file)
        file.is_lazy = Config._is_lazy_import(str(path))
    else:
        file.expressions = {name: value for name, value in load(path).items() if name != '_base_'}
        file.assigned = set(file.expressions)
    paths = _imported_bases(tree, path) if file.is_lazy else []
    if not file.is_lazy:
        paths = [Path(Config._get_cfg_path(base, str(path))[0]) for base in Config._get_base_files(str(path))]
    file.bases = [config_files(base) for base in paths]
    return file


def _imported_bases(tree: ast.Module, path: Path) -> list[Path]:
    """Base files that a lazy config imports in ``with read_base():``."""
    found = []
    for block in (node for node in tree.body if isinstance(node, ast.With)):
        for node in block.body:
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                folder = path.resolve().parents[node.level - 1]
                base = folder.joinpath(*node.module.split('.')).with_suffix('.py')
                found += [base] if base.is_file() else []
    return found


def changed_names(statement: ast.stmt) -> tuple[set[str], set[str], set[str]]:
    """Names that a statement assigns, changes in place, and changes in place in a base."""
    assigned: set[str] = set()
    in_place: set[str] = set()
    of_base: set[str] = set()
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, 'target', None)]
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        targets = [statement.value.func]
    if isinstance(statement, (ast.If, ast.For, ast.With, ast.Try)):
        parts = [changed_names(part) for part in ast.iter_child_nodes(statement) if isinstance(part, ast.stmt)]
        return tuple(set().union(*(part[index] for part in parts)) for index in range(3))  # type: ignore[return-value]
    for target in targets:
        for part in target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]:
            if part is None:
                continue
            path = [part]
            while isinstance(path[-1], (ast.Attribute, ast.Subscript)):
                path.append(path[-1].value)
            root = path[-1]
            if not isinstance(root, ast.Name):
                continue
            if root.id == '_base_':
                name = _first_name(path[-2]) if len(path) > 1 else None
                if name and (len(path) > 2 or isinstance(getattr(path[-2], 'ctx', None), ast.Store)):
                    of_base.add(name)
            elif len(path) > 1 or isinstance(statement, ast.AugAssign):
                in_place.add(root.id)
            elif isinstance(root.ctx, ast.Store):
                assigned.add(root.id)
    return assigned, in_place, of_base


def _first_name(node: ast.expr) -> str | None:
    """``NAME`` of ``_base_.NAME`` and ``_base_['NAME']``."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return None


def _note_names(statement: ast.stmt, file: ConfigFile) -> None:
    """Record the names that one statement assigns and uses; a change in place is not a use."""
    assigned, in_place, of_base = changed_names(statement)
    assigned = {name for name in assigned if not name.startswith('__')} - {'_base_'}
    file.assigned |= assigned | (in_place & file.assigned) | of_base
    file.changed |= in_place | of_base
    value = getattr(statement, 'value', None)
    if isinstance(statement, (ast.Assign, ast.AnnAssign)) and value is not None:
        file.expressions.update(dict.fromkeys(assigned, value))
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in assigned | in_place:
            file.used.add(node.id)
        if isinstance(node, (ast.Attribute, ast.Subscript)) and getattr(node.value, 'id', '') == '_base_':
            name = _first_name(node)
            if name and name not in of_base:
                file.from_base.add(name)
