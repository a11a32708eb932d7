"""Safe reading of checkpoints: data only, no code."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import mmengine.runner.checkpoint
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from torch import nn

from bootmae_mm.config import load_config
from bootmae_mm.installed import weights_path
from bootmae_mm.registry import MODELS
from bootmae_mm.validation import ConfigError, MissingFileError

from .releases import OFFICIAL, official_url
from .saved_config import config_of
from .trust import is_trusted

HUB = 'hf-hub:'
MODEL_FILES = ('model.safetensors', 'pytorch_model.bin')


def _history_method(owner: type, name: str) -> Callable:
    """Replacement of ``getattr`` while a file is read: gives the statistics of mmengine's log history, nothing else.

    mmengine pickles references to methods of ``HistoryBuffer``, which needs ``getattr``; the real one would give a file
    access to anything.
    """
    if owner is not HistoryBuffer or name not in HistoryBuffer()._statistics_methods:
        raise pickle.UnpicklingError(f'the file asks for {name!r} of {owner!r}')
    return getattr(HistoryBuffer, name)


def safe_globals() -> list:
    """Classes that a checkpoint may hold besides tensors and plain containers.

    mmengine's training checkpoints hold its log history (numpy arrays, references to methods), the authors' an argparse
    Namespace. None of these runs code from the file when it is loaded.
    """
    reconstruct = np.empty(0).__reduce__()[0]  # its module was renamed between versions of numpy
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'int32', 'bool', 'uint8')]
    getattr_of_history = (_history_method, 'builtins.getattr')
    arrays = [np.ndarray, np.dtype, reconstruct, scalar, *dtypes]
    return [HistoryBuffer, getattr_of_history, argparse.Namespace, *arrays]


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)``, the default since torch 2.6, read what mmengine's Runner saves.

    One distribution of mmengine has a list of its own, with the real ``getattr``, which would let a file run any code.
    This project's list replaces it.
    """
    torch.serialization.add_safe_globals(safe_globals())
    if hasattr(mmengine.runner.checkpoint, 'get_torch_safe_globals'):
        mmengine.runner.checkpoint.get_torch_safe_globals = safe_globals


def local_names(folder: Path) -> list[str]:
    """Names of the model files of transformers and timm in a folder."""
    return [name for name in MODEL_FILES if (folder / name).is_file()]


def local_file(path: str | Path) -> Path:
    """The file at a path, in a folder of transformers or timm, behind a URL, on the hub, or of the authors by name.

    What is downloaded is kept: in torch's cache, or that of the hub.

    Raises:
        MissingFileError: If there is no such file.
        ConfigError: If the URL cannot be read.
    """
    text = str(path)
    if text.startswith(OFFICIAL):
        text = official_url(text.removeprefix(OFFICIAL))
    if text.startswith(HUB):
        return _from_hub(text.removeprefix(HUB))
    if text.startswith(('http://', 'https://')):
        name = f'{hashlib.sha256(text.encode()).hexdigest()[:8]}-{text.rsplit("/", 1)[-1]}'
        file = Path(torch.hub.get_dir(), 'checkpoints', name)
        try:
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(text, str(file), progress=False)  # renames the complete file
        except OSError as error:
            raise ConfigError(f'cannot read {text}: {error}') from error
        return file
    file = weights_path(path)
    if file.is_dir():
        file = file / (local_names(file) or MODEL_FILES)[0]
    if not file.is_file():
        if '://' in text:
            raise MissingFileError(f'no checkpoint {text}; URLs are http:// or https://')
        raise MissingFileError(f'no checkpoint {file}')
    return file


def _from_hub(name: str) -> Path:
    """The model file of a repository on the Hugging Face hub, from its cache if it is there."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(f'{HUB}{name} needs huggingface_hub: pip install huggingface_hub') from error
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=['*.json', *MODEL_FILES]))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise ConfigError(f'cannot read {HUB}{name}: {str(error).splitlines()[0]}') from error
    return local_file(folder)


def reason_of(error: Exception) -> str:
    """Why a file did not load, in one line; torch's own message is long and starts with advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, pickle.UnpicklingError):
        if isinstance(error.__context__, pickle.UnpicklingError):  # mmengine has tried twice
            return reason_of(error.__context__)
        for line in lines:
            if 'GLOBAL' in line or 'the file asks for' in line:
                name = line.split('. ')[0].removeprefix('WeightsUnpickler error: ')
                return f'{name}; --trust-checkpoint reads it anyway, and runs code in it'
        return 'it is not a file of torch.save, or damaged'
    return lines[0] if lines else type(error).__name__


def load_file(path: str | Path, mmap: bool = False) -> dict:
    """Read a checkpoint without running code from it (unless ``--trust-checkpoint`` is given).

    Args:
        path: A file written by ``torch.save`` or safetensors, a folder with one, or a URL.
        mmap: Leave the tensors in the file until they are used, to look at names and shapes only.

    Returns:
        The dict in it, tensors on the CPU.

    Raises:
        MissingFileError: If there is no such file.
        ConfigError: If the file is not a checkpoint, or holds something that only running code could restore.
    """
    path = local_file(path)
    if path.suffix.lower() == '.safetensors':
        return _load_safetensors(path)
    allowed = torch.serialization.get_safe_globals()
    try:
        with torch.serialization.safe_globals(safe_globals()):
            checkpoint = torch.load(
                path, map_location='cpu', weights_only=not is_trusted(), mmap=mmap and zipfile.is_zipfile(path)
            )
        if not isinstance(checkpoint, dict):
            raise TypeError(f'it holds a {type(checkpoint).__name__}, not a dict')
    except Exception as error:  # noqa: BLE001  a foreign file may raise anything
        raise ConfigError(f'{path} is not a checkpoint that loads safely: {reason_of(error)}') from error
    finally:
        # The context removes what it allowed, even if that had been allowed before.
        torch.serialization.add_safe_globals(allowed)
    return checkpoint


def _load_safetensors(path: Path) -> dict:
    """The tensors of a safetensors file under ``state_dict``, and its metadata under ``meta``."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, 'pt') as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            return dict(state_dict=state, meta=dict(file.metadata() or {}))
    except SafetensorError as error:
        raise ConfigError(f'{path} is not a safetensors file: {error}') from error


def load_model(path: str | Path, config: str | Path | None = None) -> tuple[nn.Module, Config]:
    """Build a pretraining model and load all its weights from a checkpoint of this project.

    Args:
        path: Path of the checkpoint.
        config: Path of a config; by default the one in the checkpoint is used.

    Returns:
        The model in eval mode, and its config.

    Raises:
        MissingFileError: If a file is missing.
        ConfigError: If the checkpoint does not fit.
    """
    checkpoint = load_file(path)
    cfg = config_of(checkpoint) if config is None else load_config(config)
    model = MODELS.build(cfg.model)
    try:
        model.load_state_dict(checkpoint.get('state_dict', checkpoint))
    except RuntimeError as error:
        raise ConfigError(f'{path} does not fit the model: {" ".join(str(error).split())[:300]}') from error
    return model.eval(), cfg
