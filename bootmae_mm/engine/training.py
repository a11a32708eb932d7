"""A training run: from a folder of images, or from a config, to its last checkpoint."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from bootmae_mm.data.archives import is_archives
from bootmae_mm.data.paths import LISTS
from bootmae_mm.options import parse_value
from bootmae_mm.validation import ConfigError, MissingFileError, require

from .checks import check_checkpoint, check_classes, check_loader, check_settings, check_validation
from .launch import launched_rank, prepare, read_config
from .recovery import choose_start, latest_checkpoint, lock
from .runner import Runner

DATA_HUB = 'hf://'  # before the name of a data set on the Hugging Face hub
AUTO_CONFIG = 'bootmae_mm::pretrain/bootmae_auto.py'
MODELS = dict(vit_tiny='t', vit_small='s', vit_base='b', vit_large='l', vit_huge='h')


def pretrain(
    data: str | Path,
    out: str | Path,
    model: str | None = None,
    init: str | Path | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    devices: int | None = None,
    probe: str | Path | None = None,
    resume: bool = False,
    config: str | Path = AUTO_CONFIG,
    options: dict[str, Any] | None = None,
) -> Path:
    """Pretrain an encoder on a folder of images without labels.

    Length, batch, lr, workers and schedules are chosen from the images and the machine, and logged with the reasons
    (``configs/pretrain/bootmae_auto.py``).

    Args:
        data: Folder of images, at any depth; a list of paths relative to its own folder (text, CSV, Parquet); TAR or
            ZIP archives (a folder of them, or a path or URL with ``*`` or ``{000..123}``); or ``hf://ORG/NAME``.
        out: Folder for logs, pictures and checkpoints.
        model: ``'vit_tiny'``, ``'vit_small'``, ``'vit_base'``, ``'vit_large'`` or ``'vit_huge'``; a patch size other
            than 16 follows a slash: ``'vit_small/8'``. By default that of ``init``, or ``'vit_small'``.
        init: Weights to start from: a checkpoint of this project, the authors, mmpretrain, timm (also MAE, DINO and
            DINOv2) or transformers (ViT, ViTMAE, DINOv2, CLIP), as a file, folder, URL or ``hf-hub:ORG/NAME``.
        epochs: Number of epochs; chosen by default.
        batch_size: Images per process and iteration; chosen by default.
        devices: Number of GPUs; all by default. Without a GPU, one process runs on the CPU.
        probe: Folder of labeled images, one folder for each class, to classify by the features during the run.
        resume: Resume an interrupted run in ``out``.
        config: Path or name of another config.
        options: Further keys of the config, dotted: ``{'masking.ratio': 0.6}``.

    Returns:
        Path of the last checkpoint, for :func:`bootmae_mm.load_encoder` and :func:`bootmae_mm.embed`.

    Raises:
        MissingFileError: If there is no such folder or config.
        ConfigError: If a value is wrong, or ``out`` holds a run and ``resume`` is False.
    """
    given = run_options(data, model, init, epochs, batch_size, probe) | (options or {})
    check_new(out, resume)
    count = number_of_processes(devices)
    if count > 1:
        text = [f'{key}={as_text(value)}' for key, value in given.items()]
        arguments = [config, '--work-dir', out, *(['--resume'] if resume else []), '--cfg-options', *text]
        status = _run_processes(launch_command(count, arguments))
        require(status == 0, f'the run ended with status {status}; its log is in {out}')
    else:
        again = 'auto' if resume else None
        cfg = read_config(str(config), given, str(out), resume=again)
        threads, raises = torch.get_num_threads(), logging.raiseExceptions
        try:
            with work_dir_of(cfg):
                start(cfg, again)
        finally:  # of the caller's process
            torch.set_num_threads(threads)
            logging.raiseExceptions = raises
    last = latest_checkpoint(out)
    assert last is not None
    return last


def _run_processes(command: list[str]) -> int:
    """Run torchrun and return its status. If the caller is interrupted, so are its processes: they save and end."""
    process = subprocess.Popen(command, env=launch_environment())
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def as_text(value: Any) -> str:
    """An option of Python as the text that ``--cfg-options`` reads back as the same value.

    Raises:
        ConfigError: If there is no such text.
    """
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        text = repr(value)
    else:
        quote = next((sign for sign in '\'"' if sign not in value), '')
        text = f'{quote}{value}{quote}'
    same = parse_value(text)
    require(same == value and type(same) is type(value), f'several processes cannot get the option {value!r}')
    return text


def run_options(
    data: str | Path | None = None,
    model: str | None = None,
    init: str | Path | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    probe: str | Path | None = None,
) -> dict[str, Any]:
    """Keys of a config for the arguments of :func:`pretrain`; what is None is left out.

    Raises:
        MissingFileError: If there is no such folder.
        ConfigError: For an unknown model.
    """
    options: dict[str, Any] = {}
    if data is not None:
        options |= data_options(str(data))
    if model is not None:
        found = re.fullmatch(rf'({"|".join(MODELS)})(?:/(\d+))?', model)
        if found is None:
            raise ConfigError(f'unknown model {model!r}; models: {", ".join(MODELS)}, with /PATCH as in vit_small/8')
        options['model.backbone.arch'] = MODELS[found[1]]
        if found[2]:
            options['patch_size'] = int(found[2])
    if init is not None:
        options['init'] = str(init)
    if probe is not None:
        options['default_hooks.probe.data_root'] = str(probe)
    if epochs is not None:
        options['train_cfg.max_epochs'] = epochs
    if batch_size is not None:
        options['train_dataloader.batch_size'] = batch_size
    return options


def data_options(data: str) -> dict[str, Any]:
    """Keys of a config for the images of :func:`pretrain`: where they are, and the data set that reads them.

    Raises:
        MissingFileError: If there is no such file or folder.
    """
    path = Path(data)
    if data.startswith(DATA_HUB):
        kind = {'type': 'bootmae_mm.HuggingFaceImages', 'folder': ''}
        root = data.removeprefix(DATA_HUB).removeprefix('datasets/')
    elif is_archives(data):
        kind, root = {'type': 'bootmae_mm.ImageArchives', 'folder': ''}, data
    elif path.is_file() and path.suffix.lower() in LISTS:
        kind, root = {'ann_file': data, 'folder': ''}, str(path.resolve().parent)
    elif path.is_dir():
        kind, root = {}, data
    else:
        raise MissingFileError(f'no folder {data}')
    loaders = ('train_dataloader', 'test_dataloader')
    keys = {f'{loader}.dataset.{key}': value for loader in loaders for key, value in kind.items()}
    return {'data_root': root, **keys}


def check_new(out: str | Path, resume: bool) -> None:
    """Refuse to start over in the folder of another run.

    Raises:
        ConfigError: If there are checkpoints.
    """
    there = sorted(path.name for path in Path(out).glob('*.pth'))
    require(resume or not there, f'{out} holds a run ({there[:1]}): resume it, or choose another folder')


def number_of_processes(devices: int | None) -> int:
    """Number of processes on this machine.

    Raises:
        ConfigError: If there are fewer GPUs than wanted.
    """
    there = torch.cuda.device_count()
    count = max(1, there) if devices is None else devices
    require(count >= 1, f'devices must be at least 1, but is {count}')
    require(there == 0 or count <= there, f'devices={count}, but this machine has {there} GPU(s)')
    return count


def launch_command(processes: int, arguments: Sequence[object], command: str = 'train') -> list[str]:
    """Command that starts a command of ``bootmae`` in several processes, on a free port."""
    torchrun = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}']
    launcher = ['--launcher', 'pytorch'] if command == 'train' else []
    return [sys.executable, *torchrun, '-m', 'bootmae_mm', command, *map(str, arguments), *launcher]


def launch_environment() -> dict[str, str]:
    """Environment of several processes: one OpenMP thread each, which torchrun would set too, with a banner."""
    return {'OMP_NUM_THREADS': '1', **os.environ}


@contextmanager
def work_dir_of(cfg: Config) -> Iterator[None]:
    """Within the block, the work_dir is locked for this run.

    Raises:
        ConfigError: If another run uses it.
    """
    held = lock(cfg.work_dir, _is_restarted()) if launched_rank(cfg.launcher) == 0 else None
    try:
        yield
    finally:
        if held is not None:
            held.close()


def start(cfg: Config, resume: str | None = None) -> None:
    """Choose the checkpoint to start from, and train.

    Args:
        cfg: Config from :func:`read_config`.
        resume: Value of ``--resume``.
    """
    choose_start(cfg, resume, _is_restarted())
    # With a full disk, the console still has each line of the log, and needs no traceback for each.
    logging.raiseExceptions = False
    train(cfg)


def _is_restarted() -> bool:
    """Whether torchrun has restarted this process after another one died."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0


def train(cfg: Config) -> None:
    """Check what can be checked before the first iteration, and train.

    Args:
        cfg: Config from :func:`read_config`, with ``load_from`` and ``resume`` set.

    Raises:
        ConfigError: If something does not fit.
    """
    check_settings(cfg)
    prepare(cfg)
    runner = Runner.from_cfg(cfg)
    check_loader(runner)
    check_classes(runner.model, runner.train_dataloader.dataset)
    check_validation(runner)
    if cfg.load_from:
        check_checkpoint(runner, cfg.load_from, complete=cfg.resume)
    try:
        runner.train()
    except (EOFError, ConnectionResetError, BrokenPipeError):
        # A worker of the loader died while sending a batch. A signal tells torch the reason in a moment, and it raises.
        time.sleep(5)
        raise
