"""Reading of configs: every name at the top of a file takes effect, or is refused."""

from __future__ import annotations

import ast
import copy
import difflib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from bootmae_mm.installed import SCOPE, config_file
from bootmae_mm.options import Unparsed, parse_value
from bootmae_mm.validation import ConfigError, MissingFileError, require

from .files import ConfigFile, changed_names, config_files
from .text import FormattedOnce

# Keys that mmengine's Runner reads besides the arguments of its constructor, and keys of tools and hooks.
OTHER_KEYS = {
    *('model_wrapper_cfg', 'find_unused_parameters', 'sync_bn', 'compile', 'custom_imports', 'efficient_conv_bn_eval'),
    *('activation_checkpointing', 'init', 'knn', 'tta_model', 'tta_pipeline'),
}
RUNNER_KEYS = (set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}) | OTHER_KEYS
BOUND = '_bound_names'  # attribute of a config from load_config: names bound late


def load_config(path: str | Path, options: dict[str, Any] | None = None) -> Config:
    """Read a config and apply ``--cfg-options``.

    mmengine evaluates a base file before its child configs: overriding a name such as ``data_root`` or ``masking`` in a
    child config or an option would not affect what the base made of it. Here it does, as if the base had been written
    with the new value.

    Args:
        path: Path of the config, or ``bootmae_mm::NAME`` for one that comes with the package.
        options: Dotted keys and values; values from a command line are :class:`Unparsed`.

    Returns:
        The config.

    Raises:
        MissingFileError: If there is no such file.
        ConfigError: If the file, or an option, sets a name that nothing reads.
    """
    name, path = path, config_file(path)
    if not path.is_file():
        hint = '; `bootmae config` lists those that come with the package' if str(name).startswith(SCOPE) else ''
        raise MissingFileError(f'no config {name}{hint}')
    cfg = Config.fromfile(path)
    file = config_files(path)
    late = _late_names(file, cfg)
    values = _parsed(options or {}, cfg)
    _check_options(values, cfg, file)
    helpers = {key: value for key, value in values.items() if key.split('.')[0] not in RUNNER_KEYS}
    final = _final_values(file, late | {key.split('.')[0] for key in helpers}, helpers)
    with late_binding(final, file):
        cfg = Config.fromfile(path)
    for name, value in final.items():
        cfg[name] = value
    _merge(cfg, {key: value for key, value in values.items() if key not in helpers})
    object.__setattr__(cfg, BOUND, final)
    object.__setattr__(cfg, '__class__', FormattedOnce)  # Config.fromfile returns no subclass
    return cfg


def bound_names(cfg: Config) -> dict[str, Any]:
    """Names that :func:`load_config` bound late, with their values."""
    return cfg.__dict__.get(BOUND) or {}


def check_bound(cfg: Config) -> None:
    """Refuse a config that needs :func:`load_config` but was read without it.

    Raises:
        ConfigError: If a file sets a name that has no effect when mmengine alone reads it.
    """
    if BOUND in cfg.__dict__ or not cfg.filename or not Path(cfg.filename).is_file():
        return
    late = sorted(_late_names(config_files(cfg.filename), cfg))
    require(
        not late,
        f'{cfg.filename} overrides {late}, which has no effect on its base files when mmengine alone reads it; read it '
        'with bootmae_mm.config.load_config, or set the final keys',
    )


def value_at(node: Any, key: str) -> Any:
    """Value of a dotted key, or None."""
    for part in key.split('.'):
        if isinstance(node, (dict, Config)):
            node = node.get(part)
        elif isinstance(node, (list, tuple)) and part.lstrip('-').isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            return None
    return node


def _parsed(options: dict[str, Any], cfg: Config) -> dict[str, Any]:
    parsed = {}
    for key, value in options.items():
        current = value_at(cfg, key)
        parsed[key] = parse_value(value, current) if isinstance(value, Unparsed) else value
        if isinstance(parsed[key], dict) and current is not None and not isinstance(current, dict):
            parsed[key] = {'_delete_': True, **parsed[key]}  # otherwise mmengine would refuse the change of type
    return parsed


def _merge(cfg: Config, options: dict[str, Any]) -> None:
    """Apply options together (``_delete_`` is one of them); name the impossible one."""
    mistakes = (KeyError, IndexError, TypeError, AttributeError)
    before = copy.deepcopy(cfg)
    try:
        cfg.merge_from_dict(copy.deepcopy(options))  # mmengine removes _delete_ from them
    except mistakes as error:
        for key, value in options.items():
            try:
                copy.deepcopy(before).merge_from_dict({key: value})
            except mistakes:
                raise ConfigError(f'--cfg-options {key}: there is no such place in the config ({error})') from error
        raise


def _final_values(file: ConfigFile, names: set[str], options: dict[str, Any]) -> dict[str, Any]:
    """Values of names that are bound late, each evaluated with the final values of the others.

    Plain values come first, as a base may derive a dict from them.
    """
    plain = Config.fromfile(file.path)
    final: dict[str, Any] = {}
    for name in sorted(names, key=lambda name: (isinstance(plain.get(name), (dict, list)), name)):
        with late_binding(final, file):
            cfg = Config.fromfile(file.path)
        _merge(cfg, {key: value for key, value in options.items() if key.split('.')[0] == name})
        final[name] = cfg[name]
    return final


def _check_options(options: dict[str, Any], cfg: Config, file: ConfigFile) -> None:
    """Refuse top-level options that would have no effect."""
    files = [part for part in file.chain() if not part.is_lazy]  # lazy files are imported by mmengine
    helpers = {name for part in files for name in (part.used & part.assigned) | part.from_base}
    for key in options:
        name = key.split('.')[0]
        require(name in RUNNER_KEYS | helpers, f'--cfg-options: {_explain(name, cfg)}')


def _late_names(file: ConfigFile, cfg: Config) -> set[str]:
    """Names that a file of the chain sets for one of its bases, which uses them.

    These are names that the file does not use itself. One that it uses may be meant for itself alone; but a plain
    value, such as an image size or a path, is meant for all, where that makes a difference.

    Raises:
        ConfigError: If neither the Runner nor any file uses a name.
    """
    late: set[str] = set()
    shared: set[str] = set()
    taken = set().union(*(part.from_base for part in file.chain()))
    for part in file.chain():
        bases = [base for parent in part.bases for base in parent.chain()]
        inherited = set().union(*((base.used & base.assigned) | base.from_base for base in bases))
        if not part.is_lazy and not part.is_installed:
            shared |= {name for name in part.assigned & part.used & inherited - RUNNER_KEYS if _is_plain(cfg.get(name))}
        for name in part.assigned - part.used - RUNNER_KEYS:
            if name in inherited and not part.is_lazy:
                late.add(name)
            elif name not in taken and not name.startswith('_') and not _is_harmless(part, name, file, cfg):
                raise ConfigError(f'{part.path}: {_explain(name, cfg)}')
    if shared - late:
        plain = Config.fromfile(file.path).to_dict()  # the config at hand may have changed since it was read
        for name in shared - late:
            with late_binding({name: plain[name]}, file):
                if Config.fromfile(file.path).to_dict() != plain:
                    late.add(name)
    return late


def _is_plain(value: Any) -> bool:
    """Whether a value is a text, a number, or some of these."""
    return all(isinstance(part, (str, int, float)) for part in (value if isinstance(value, (tuple, list)) else [value]))


def _is_harmless(part: ConfigFile, name: str, leaf: ConfigFile, cfg: Config) -> bool:
    """Whether an unused name is acceptable: meant for child configs, or left in a dumped config."""
    if part.is_installed:
        return True
    if not part.bases and any(_contains(value, cfg.get(name)) for key, value in cfg.items() if key in RUNNER_KEYS):
        return True
    is_child = part is leaf and part.bases
    return not is_child and not difflib.get_close_matches(name, RUNNER_KEYS, cutoff=0.85)


def _contains(node: Any, wanted: Any) -> bool:
    """Whether a value occurs in another; a path also as the beginning of a longer one."""
    if node == wanted or (isinstance(node, str) and isinstance(wanted, str) and node.startswith(f'{wanted}/')):
        return True
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
    return any(_contains(part, wanted) for part in parts)


def _explain(name: str, cfg: Config) -> str:
    """Message for a name that nothing reads, with the key that was probably meant."""
    paths = [path for path in _paths_of(name, cfg) if path != name]
    if paths:
        return f'nothing reads the key {name!r}; the key that has an effect is {" or ".join(paths[:3])}'
    close = difflib.get_close_matches(name, RUNNER_KEYS | set(cfg), n=2)
    close = [candidate for candidate in close if candidate != name]
    return f'nothing reads the key {name!r}' + (f'; did you mean {close[0]!r}?' if close else '')


def _paths_of(name: str, node: Any, prefix: str = '') -> Iterator[str]:
    """Dotted keys in a config that end in a name."""
    items = node.items() if isinstance(node, (dict, Config)) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if key == name:
            yield f'{prefix}{key}'
        yield from _paths_of(name, value, f'{prefix}{key}.')


@contextmanager
def late_binding(values: dict[str, Any], file: ConfigFile) -> Iterator[None]:
    """Within the block, mmengine reads the files of a config with these values of their names."""
    original = Config._substitute_predefined_vars
    files = [part.path for part in file.chain()]

    def substitute(filename: str, temporary: str) -> None:
        original(filename, temporary)
        if values and Path(filename).suffix == '.py' and Path(filename).resolve() in files:
            text = Path(temporary).read_text(encoding='utf-8')
            Path(temporary).write_text(_with_values(text, values), encoding='utf-8')

    # The only step of mmengine's reading that knows both the file and the copy that it executes.
    Config._substitute_predefined_vars = staticmethod(substitute)
    try:
        yield
    finally:
        Config._substitute_predefined_vars = staticmethod(original)


def _with_values(text: str, values: dict[str, Any]) -> str:
    """Add an assignment after the last statement that sets or changes each name."""
    last: dict[str, int] = {}
    for statement in ast.parse(text).body:
        assigned, in_place, of_base = changed_names(statement)
        line = statement.end_lineno or 0
        last.update(dict.fromkeys((assigned | in_place) & set(values), line))
        last.update({f'_base_.{name}': line for name in of_base & set(values)})
    lines = text.splitlines()
    for target, line in sorted(last.items(), key=lambda item: -item[1]):
        lines.insert(line, f'{target} = {_plain(values[target.removeprefix("_base_.")])!r}')
    return '\n'.join(lines) + '\n'


def _plain(value: Any) -> Any:
    """Value whose ``repr`` is Python, without mmengine's own dict classes."""
    if isinstance(value, (ConfigDict, dict)):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value
