"""Reading configs: every name at the top of a file takes effect, or is refused."""

from __future__ import annotations

import ast
import difflib
import inspect
import site
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from bootmae_mm.arguments import Unparsed

# What mmengine's Runner looks up in a config beside the arguments of its constructor, and what tools and hooks do.
OTHER_KEYS = {
    *('model_wrapper_cfg', 'find_unused_parameters', 'sync_bn', 'compile', 'custom_imports', 'efficient_conv_bn_eval'),
    *('activation_checkpointing', 'knn', 'tta_model', 'tta_pipeline'),
}
BOUND = '_names_are_bound'  # attribute of a config that load_config has read
RUNNER_KEYS = (set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}) | OTHER_KEYS


@dataclass
class ConfigFile:
    """The names in one file of a chain of configs.

    Attributes:
        path: Path of the file.
        bases: Files it inherits from.
        assigned: Names it assigns at the top level.
        used: Those that it uses for something else.
        from_base: Names it takes from its bases (``{{_base_.NAME}}``).
        expressions: What it assigns to them.
    """

    path: Path
    bases: list[ConfigFile] = field(default_factory=list)
    assigned: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    from_base: set[str] = field(default_factory=set)
    expressions: dict[str, ast.expr] = field(default_factory=dict)

    def chain(self) -> Iterator[ConfigFile]:
        """This file and all that it inherits from."""
        yield self
        for base in self.bases:
            yield from base.chain()

    def sets(self, key: str) -> bool:
        """Whether this very file gives a dotted key a value."""
        name, *rest = key.split('.')
        if self.path.suffix != '.py':
            return name in self.assigned
        node = self.expressions.get(name)
        for part in rest:
            if isinstance(node, ast.Call):
                node = next((keyword.value for keyword in node.keywords if keyword.arg == part), None)
            elif isinstance(node, ast.Dict):
                keys = [getattr(item, 'value', None) for item in node.keys]
                node = node.values[keys.index(part)] if part in keys else None
        return node is not None

    def values(self) -> dict[str, Any]:
        """What mmengine makes of this file and its bases."""
        return Config.fromfile(self.path)._cfg_dict

    @property
    def is_installed(self) -> bool:
        """Whether the file belongs to an installed package, whose names are not the user's."""
        return any(root in self.path.parents for root in map(Path, site.getsitepackages()))


def load_config(path: str | Path, options: dict[str, Any] | None = None) -> Config:
    """Read a config and apply ``--cfg-options``.

    mmengine computes a base file before it looks at the file that inherits from it: a name such as ``data_root`` or
    ``masking`` that a child config or an option sets anew would no longer reach what the base has made of it. Here it
    does, as if the base had been written with the new value.

    Args:
        path: Path of the config.
        options: Dotted keys and values; of type :class:`Unparsed` if they come from a command line.

    Returns:
        The config.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file, or an option, sets a name that nothing reads.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no config {path}')
    cfg = Config.fromfile(path)
    file = config_files(path)
    late = _late_names(file)
    values = _parsed(options or {}, cfg)
    _check_options(values, cfg, file)
    helpers = {key: value for key, value in values.items() if key.split('.')[0] not in RUNNER_KEYS}
    cfg.merge_from_dict(helpers)
    late |= {key.split('.')[0] for key in helpers}
    if late:
        # Values of base files are computed again, with the final values of these names.
        final = {name: cfg[name] for name in late}
        with _late_binding(final, [part.path for part in file.chain()]):
            cfg = Config.fromfile(path)
        for name, value in final.items():
            cfg[name] = value
    cfg.merge_from_dict({key: value for key, value in values.items() if key not in helpers})
    object.__setattr__(cfg, BOUND, True)
    return cfg


def check_bound(cfg: Config) -> None:
    """Refuse a config that was read without :func:`load_config` and needs it.

    Raises:
        ValueError: If a file sets a name that reaches nothing when mmengine alone reads it.
    """
    if cfg.__dict__.get(BOUND) or not cfg.filename or not Path(cfg.filename).is_file():
        return
    late = sorted(_late_names(config_files(cfg.filename)))
    if late:
        raise ValueError(
            f'{cfg.filename} sets {late} anew, which mmengine alone does not pass on to what its base files made of '
            'them; read it with bootmae_mm.config.load_config, or set the keys themselves'
        )


def parse_value(text: str, current: Any = None) -> Any:
    """The value that a text on the command line stands for.

    Blanks are kept. A string stays one if it replaces a string, whatever it looks like, except ``None``, ``True``,
    ``False`` and lists in brackets. Elsewhere commas make a list if it replaces one, or if all parts are numbers.

    Args:
        text: What stands behind ``KEY=``.
        current: The value of the key in the config.
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in '\'"':
        return text[1:-1]
    constants = dict(none=None, true=True, false=False)
    if text.lower() in constants and (text != 'none' or not isinstance(current, str)):
        return constants[text.lower()]
    if text[:1] in ('[', '(', '{') and text[-1:] in (']', ')', '}'):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            if isinstance(current, str) or text[0] == '{':
                return text
            items = [parse_value(part) for part in _split(text[1:-1])]
            return tuple(items) if text[0] == '(' else items
    if isinstance(current, str):
        return text
    number = _number(text)
    if number is not None:
        return number
    if len(texts := _split(text)) < 2:
        return [text] if text.strip() and isinstance(current, (list, tuple)) else text
    parts = [parse_value(part) for part in texts]
    is_list = isinstance(current, (list, tuple)) or not any(isinstance(part, str) for part in parts)
    return parts if is_list else text


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _split(text: str) -> list[str]:
    """Parts between commas that are not inside brackets; a comma at the end adds none."""
    parts, depth = [''], 0
    for character in text:
        depth += (character in '[({') - (character in '])}')
        if character == ',' and depth == 0:
            parts.append('')
        else:
            parts[-1] += character
    return parts if parts[-1].strip() else parts[:-1]


def _parsed(options: dict[str, Any], cfg: Config) -> dict[str, Any]:
    parsed = {}
    for key, value in options.items():
        current = value_at(cfg, key)
        parsed[key] = parse_value(value, current) if isinstance(value, Unparsed) else value
        if isinstance(parsed[key], dict) and current is not None and not isinstance(current, dict):
            parsed[key] = {'_delete_': True, **parsed[key]}  # else mmengine would refuse the change of type
    return parsed


def value_at(node: Any, key: str) -> Any:
    """What a dotted key stands for, or None."""
    for part in key.split('.'):
        if isinstance(node, (dict, Config)):
            node = node.get(part)
        elif isinstance(node, (list, tuple)) and part.lstrip('-').isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            return None
    return node


def _check_options(options: dict[str, Any], cfg: Config, file: ConfigFile) -> None:
    """Refuse options at the top level that would have no effect."""
    helpers = {name for part in file.chain() for name in part.used & part.assigned}
    for key in options:
        name = key.split('.')[0]
        if name not in RUNNER_KEYS | helpers:
            raise ValueError(f'--cfg-options: {_explain(name, RUNNER_KEYS | helpers, cfg)}')


def _late_names(file: ConfigFile) -> set[str]:
    """Names that a file of the chain sets without using them, and that one of its bases uses.

    Raises:
        ValueError: If nothing uses a name, neither the Runner nor any file.
    """
    late = set()
    taken = set().union(*(part.from_base for part in file.chain()))
    for part in file.chain():
        bases = [base for parent in part.bases for base in parent.chain()]
        inherited = set().union(*((base.used & base.assigned) | base.from_base for base in bases))
        for name in part.assigned - part.used - RUNNER_KEYS:
            if name in inherited:
                late.add(name)
            elif name not in taken and not name.startswith('_') and not _is_offer(part, name, file):
                raise ValueError(f'{part.path}: {_explain(name, RUNNER_KEYS | inherited)}')
    return late


def _is_offer(part: ConfigFile, name: str, leaf: ConfigFile) -> bool:
    """Whether a base offers a name to its child configs, rather than misspelling one that is read."""
    return part is not leaf and (part.is_installed or not difflib.get_close_matches(name, RUNNER_KEYS, cutoff=0.85))


def _explain(name: str, known: set[str], cfg: Config | None = None) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f'; did you mean {close[0]!r}?' if close else ''
    paths = [] if cfg is None else [path for path in _paths_of(name, cfg) if path != name]
    if paths:
        hint = f'; the key that has an effect is {" or ".join(paths[:3])}'
    return f'nothing reads the key {name!r}{hint}'


def _paths_of(name: str, node: Any, prefix: str = '') -> Iterator[str]:
    """Dotted keys in a config that end in a name."""
    items = node.items() if isinstance(node, (dict, Config)) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if key == name:
            yield f'{prefix}{key}'
        yield from _paths_of(name, value, f'{prefix}{key}.')


def config_files(path: str | Path) -> ConfigFile:
    """A config file and those that it inherits from, with the names in each."""
    path = Path(path)
    file = ConfigFile(path.resolve())
    if path.suffix != '.py':  # JSON and YAML have values only
        file.assigned = set(Config._file2dict(str(path))[0])
        return file
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for statement in tree.body:
        _note_names(statement, file)
    if Config._is_lazy_import(str(path)):  # bases are imported, not computed
        return file
    for base in Config._get_base_files(str(path)):
        file.bases.append(config_files(Path(Config._get_cfg_path(base, str(path))[0])))
    return file


def _note_names(statement: ast.stmt, file: ConfigFile) -> None:
    """Note what one statement assigns and uses; changing a value in place is no use of it."""
    changed = set()
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, 'target', None)]
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        targets = [statement.value.func]
    for target in targets:
        for part in target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]:
            path = [part]
            while isinstance(path[-1], (ast.Attribute, ast.Subscript)):
                path.append(path[-1].value)
            root = path[-1]
            if isinstance(root, ast.Name) and (len(path) > 1 or isinstance(root.ctx, ast.Store)):
                changed.add(root.id)
                if root.id == '_base_' and len(path) > 2 and isinstance(path[-2], ast.Attribute):
                    file.assigned.add(path[-2].attr)  # a value of the base, changed in place
    if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        names = {name for name in changed if not name.startswith('__')} - {'_base_'}
        file.assigned |= names
        file.expressions.update({name: statement.value for name in names if statement.value is not None})
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in changed:
            file.used.add(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == '_base_':
            file.from_base.add(node.attr)


@contextmanager
def _late_binding(values: dict[str, Any], files: list[Path]) -> Iterator[None]:
    """While the block runs, mmengine reads these files with these values of names that they assign."""
    original = Config._substitute_predefined_vars

    def substitute(filename: str, temporary: str) -> None:
        original(filename, temporary)
        if Path(filename).suffix == '.py' and Path(filename).resolve() in files:
            text = Path(temporary).read_text(encoding='utf-8')
            Path(temporary).write_text(_with_values(text, values), encoding='utf-8')

    # The one step of mmengine's reading that knows both the file and the copy that is run.
    Config._substitute_predefined_vars = staticmethod(substitute)
    try:
        yield
    finally:
        Config._substitute_predefined_vars = staticmethod(original)


def _with_values(text: str, values: dict[str, Any]) -> str:
    """A config whose assignments to some names are each followed by another one."""
    lines = text.splitlines()
    for statement in reversed(ast.parse(text).body):
        if not isinstance(statement, ast.Assign):
            continue
        names = {target.id for target in statement.targets if isinstance(target, ast.Name)} & set(values)
        for name in names:
            lines.insert(statement.end_lineno or len(lines), f'{name} = {_plain(values[name])!r}')
    return '\n'.join(lines) + '\n'


def _plain(value: Any) -> Any:
    """A value whose ``repr`` is Python: without mmengine's own kinds of dict."""
    if isinstance(value, (ConfigDict, dict)):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value
