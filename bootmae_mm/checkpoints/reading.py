"""Reading checkpoints safely."""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmengine.runner.checkpoint
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from torch import nn

from bootmae_mm.checkpoints.trust import is_trusted
from bootmae_mm.config import load_config


def _history_method(owner: type, name: str) -> Callable:
    """Stands for ``getattr`` while a file is read: a statistic of mmengine's log history, and nothing else.

    mmengine pickles references to methods of ``HistoryBuffer``, which takes ``getattr``; the real one would let a file
    reach anything.
    """
    if owner is not HistoryBuffer or name not in HistoryBuffer()._statistics_methods:
        raise pickle.UnpicklingError(f'the file asks for {name!r} of {owner!r}')
    return getattr(HistoryBuffer, name)


def safe_globals() -> list:
    """What a checkpoint may hold beside tensors and plain containers.

    mmengine's training checkpoints hold its log history (numpy arrays, references to methods); the authors' hold an
    argparse Namespace. None of these runs code of the file's choosing when it is loaded.
    """
    reconstruct = np.empty(0).__reduce__()[0]  # its module was renamed between versions of numpy
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'int32', 'bool', 'uint8')]
    return [
        HistoryBuffer,
        (_history_method, 'builtins.getattr'),
        np.ndarray,
        np.dtype,
        reconstruct,
        scalar,
        *dtypes,
        argparse.Namespace,
    ]


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)``, the default since torch 2.6, read what mmengine's Runner saves.

    One distribution of mmengine has such a list of its own, for files that it reads by itself. The real ``getattr`` is
    on it, through which a file reaches any code; this project's list takes its place.
    """
    torch.serialization.add_safe_globals(safe_globals())
    if hasattr(mmengine.runner.checkpoint, 'get_torch_safe_globals'):
        mmengine.runner.checkpoint.get_torch_safe_globals = safe_globals


def local_file(path: str | Path) -> Path:
    """The file at a path or, downloaded once to torch's cache, behind a URL.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the URL cannot be read.
    """
    text = str(path)
    if text.startswith(('http://', 'https://')):
        name = f'{hashlib.sha256(text.encode()).hexdigest()[:8]}-{text.rsplit("/", 1)[-1]}'
        file = Path(torch.hub.get_dir(), 'checkpoints', name)
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(text, str(file), progress=False)  # renames when complete
            except OSError as error:
                raise ValueError(f'cannot read {text}: {error}') from error
        return file
    if '://' in text:
        raise ValueError(f'{text}: only paths, http:// and https:// are read')
    if Path(path).is_dir():  # of transformers and timm
        for name in ('model.safetensors', 'pytorch_model.bin'):
            if Path(path, name).is_file():
                return Path(path, name)
        raise FileNotFoundError(f'no model.safetensors or pytorch_model.bin in the folder {path}')
    if not Path(path).is_file():
        raise FileNotFoundError(f'no checkpoint {path}')
    return Path(path)


def reason_of(error: Exception) -> str:
    """Why a file did not load, in one line; torch's own message is long and begins with advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, pickle.UnpicklingError):
        if isinstance(error.__context__, pickle.UnpicklingError):  # mmengine has tried twice
            return reason_of(error.__context__)
        for line in lines:
            if 'GLOBAL' in line or 'the file asks for' in line:
                name = line.split('. ')[0].removeprefix('WeightsUnpickler error: ')
                return f'{name}; with --trust-checkpoint it is read all the same, and code in it is run'
        return 'it is no file of torch.save, or damaged'
    return lines[0] if lines else type(error).__name__


def load_file(path: str | Path, mmap: bool = False) -> dict:
    """Read a checkpoint without running code from it (but see ``--trust-checkpoint`` of the tools).

    Args:
        path: A file written by ``torch.save`` or safetensors, a folder with one, or a URL.
        mmap: Leave the tensors in the file until they are used; for those who only look at names and shapes.

    Returns:
        The dict in it, tensors on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a checkpoint, or holds something that only running code could restore.
    """
    path = local_file(path)
    if path.suffix.lower() == '.safetensors':
        return _load_safetensors(path)
    allowed = torch.serialization.get_safe_globals()
    try:
        with torch.serialization.safe_globals(safe_globals()):
            checkpoint = torch.load(
                path,
                map_location='cpu',
                weights_only=not is_trusted(),
                mmap=mmap and zipfile.is_zipfile(path),
            )
    except Exception as error:  # noqa: BLE001  whatever reading a foreign file raises
        raise ValueError(f'{path} is not a checkpoint that loads safely: {reason_of(error)}') from error
    finally:
        # The context takes away what it allowed, even where it had been allowed before.
        torch.serialization.add_safe_globals(allowed)
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} holds a {type(checkpoint).__name__}, not a checkpoint')
    return checkpoint


def _load_safetensors(path: Path) -> dict:
    """The tensors of a safetensors file, and with them its metadata under ``meta``."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, 'pt') as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            return dict(state_dict=state, meta=dict(file.metadata() or {}))
    except SafetensorError as error:
        raise ValueError(f'{path} is no safetensors file: {error}') from error


def config_of(checkpoint: dict) -> Config:
    """The config that mmengine's Runner wrote into a checkpoint, read as data.

    ``Config.fromstring`` would run the text as Python. Written by mmengine it only holds assignments of literals and
    ``dict(...)``, and nothing else is accepted here. Its ``model`` may have registered components only.

    Raises:
        ValueError: If there is no config, or it holds anything else.
    """
    values = saved_config(checkpoint)
    if values is None:
        raise ValueError('the checkpoint holds no config; name one with --config')
    check_types(values.get('model'))
    return Config(values)


def saved_config(checkpoint: dict) -> dict[str, Any] | None:
    """The values of the config in a checkpoint, read as data, or None where there is none.

    Raises:
        ValueError: If it holds anything but assignments of literals.
    """
    text = checkpoint.get('meta', {}).get('cfg')
    if not isinstance(text, str):
        return None
    values = {}
    for statement in ast.parse(text).body:
        if not (
            isinstance(statement, ast.Assign)
            and len(statement.targets) == 1
            and isinstance(statement.targets[0], ast.Name)
        ):
            raise ValueError(f'line {statement.lineno} of the config in the checkpoint is no assignment')
        values[statement.targets[0].id] = _literal(statement.value)
    return values


def _literal(node: ast.expr) -> Any:  # noqa: ANN401
    """The value of a literal, in which ``dict(a=1)`` may stand for ``{'a': 1}``."""
    if isinstance(node, ast.Call):
        if (
            not isinstance(node.func, ast.Name)
            or node.func.id != 'dict'
            or len(node.args) > 1
            or not all(isinstance(given, ast.Dict) for given in node.args)
        ):
            raise ValueError(f'line {node.lineno} of the config in the checkpoint calls something')
        # Keys that are no names are written as dict({'a.b': 1}).
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
    return ast.literal_eval(node)


def _is_module(name: str) -> bool:
    """Whether there is code that an import of that name would run; a plain folder holds none."""
    spec = importlib.util.find_spec(name) if name and '.' not in name else None
    return spec is not None and spec.origin is not None


def check_types(node: Any) -> None:  # noqa: ANN401
    """Refuse types that are no registered components.

    mmengine imports modules, and calls what a dotted name stands for; of a ``_scope_`` it imports the registry.
    """
    if isinstance(node, dict):
        kind = node.get('_scope_', node.get('type', ''))
        if (
            '_scope_' in node
            or not isinstance(kind, str)
            or '.' in kind.removeprefix('bootmae_mm.')
            or _is_module(kind)
        ):
            raise ValueError(
                f'the config in the checkpoint asks for {kind!r}, which may be any code; name a config with --config'
            )
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            check_types(value)


def load_model(path: str | Path, config: str | Path | None = None) -> tuple[nn.Module, Config]:
    """Build a pretraining model and fill it from a checkpoint of this project; every weight must come from it.

    Args:
        path: Of the checkpoint.
        config: Of a config; by default the one in the checkpoint is used.

    Returns:
        The model in eval mode, and its config.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the checkpoint does not fit.
    """
    from bootmae_mm.registry import MODELS

    checkpoint = load_file(path)
    cfg = config_of(checkpoint) if config is None else load_config(config)
    model = MODELS.build(cfg.model)
    try:
        model.load_state_dict(checkpoint.get('state_dict', checkpoint))
    except RuntimeError as error:
        reason = ' '.join(str(error).split())
        raise ValueError(f'{path} does not fit the model: {reason[:300]}') from error
    return model.eval(), cfg
