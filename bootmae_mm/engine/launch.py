"""From a command line to a Runner: the parts that tools/train.py and tools/test.py share."""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from bootmae_mm.checkpoints.reading import allow_mmengine_checkpoints, reason_of
from bootmae_mm.config import load_config
from bootmae_mm.config.files import config_files
from bootmae_mm.installed import config_file, root
from bootmae_mm.validation import ConfigError, require

from .auto import choose_auto
from .initial import apply_init
from .length import fit_to_length
from .logs import keep_early_records

MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def read_config(
    path: str,
    options: dict | None = None,
    work_dir: str | None = None,
    launcher: str = 'none',
    resume: str | None = None,
) -> Config:
    """Read the config of a run.

    Args:
        path: Path of the config, or ``bootmae_mm::NAME`` for one that comes with the package.
        options: Value of ``--cfg-options``.
        work_dir: Value of ``--work-dir``.
        launcher: Value of ``--launcher``.
        resume: Value of ``--resume``.

    Returns:
        The config, ready for a Runner.

    Raises:
        MissingFileError: If there is no such config.
        ConfigError: If the config or an option sets a key that nothing reads.
    """
    keep_early_records()
    cfg = load_config(path, options)
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{Path(path).stem}'
    is_given = given_by_user(config_file(path), options or {})
    apply_init(cfg, is_given, resume)
    chosen = choose_auto(cfg, is_given)
    fit_to_length(cfg, config_file(path), {**(options or {}), **chosen})
    # mmengine needs None to switch off one of its own hooks, and refuses None for other hooks.
    if 'default_hooks' in cfg:
        cfg.default_hooks = {
            name: hook for name, hook in cfg.default_hooks.items() if hook is not None or name in MMENGINE_HOOKS
        }
    _fill_erasing(cfg)
    return cfg


def given_by_user(path: Path, options: dict[str, Any]) -> Callable[[str], bool]:
    """A function that tells whether the user sets a dotted key: in an option, or in a config of their own.

    Args:
        path: Path of the config; those that come with the package are not the user's.
        options: Options of the command line.
    """
    package = (root() / 'configs').resolve()
    own = [file for file in config_files(path).chain() if package not in file.path.parents]

    def is_given(key: str) -> bool:
        by_option = any(f'{key}.'.startswith(f'{option}.') or option.startswith(f'{key}.') for option in options)
        return by_option or any(file.sets(key) for file in own)

    return is_given


def _fill_erasing(cfg: Config) -> None:
    """Fill the mean and std of the model's preprocessor into RandomErasing."""
    given = {**(cfg.get('data_preprocessor') or {}), **((cfg.get('model') or {}).get('data_preprocessor') or {})}
    for loader in LOADERS:
        steps = ((cfg.get(loader) or {}).get('dataset') or {}).get('pipeline') or []
        for step in steps if isinstance(steps, list) else []:
            if isinstance(step, dict) and step.get('type') == 'bootmae_mm.RandomErasing':
                order = slice(None, None, -1 if given.get('to_rgb') else 1)  # images are in BGR until then
                for key in ('mean', 'std'):
                    if given.get(key) is not None:
                        step.setdefault(key, list(given[key])[order])


def _replace_sync_bn(node: ConfigDict | list) -> int:
    """Replace SyncBN, which needs GPUs, by BN; return the number of replacements."""
    count = 0
    if isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
            count += 1
        count += sum(_replace_sync_bn(value) for value in node.values())
    elif isinstance(node, list):
        count += sum(_replace_sync_bn(value) for value in node)
    return count


def prepare(cfg: Config, training: bool = True) -> None:
    """Adapt a config to this machine.

    Without a GPU: several processes communicate through gloo (mmengine would require CUDA), float16 training is
    refused, batch norm is not synchronized, and memory is not pinned.

    Args:
        cfg: Config from :func:`read_config`, changed in place.
        training: False for evaluation, which builds no optimizer.

    Raises:
        ConfigError: If there are more processes than GPUs, or float16 is requested without a GPU.
    """
    allow_mmengine_checkpoints()
    threads = cfg.get('env_cfg', {}).get('num_threads')
    if threads is not None:
        torch.set_num_threads(threads)
    for loader in LOADERS:
        if cfg.get(loader) is not None and not cfg[loader].get('num_workers'):
            cfg[loader].update(persistent_workers=False, timeout=0)  # not allowed by torch without workers
    if cfg.get('find_unused_parameters') is not None:  # mmengine reads it only if there is no wrapper
        wrapper = {'type': 'MMDistributedDataParallel', **(cfg.get('model_wrapper_cfg') or {})}
        if wrapper['type'] == 'MMDistributedDataParallel':
            cfg.model_wrapper_cfg = {**wrapper, 'find_unused_parameters': cfg.find_unused_parameters}
    if torch.cuda.is_available():
        local_rank, count = int(os.environ.get('LOCAL_RANK', 0)), torch.cuda.device_count()
        has_gpu = cfg.launcher != 'pytorch' or local_rank < count
        require(has_gpu, f'process {local_rank} of this machine has no GPU: there are {count}')
        return
    require(
        not training or (cfg.get('optim_wrapper') or {}).get('type') != 'AmpOptimWrapper',
        'AmpOptimWrapper needs a GPU, and there is none; on a CPU use --cfg-options optim_wrapper.type=OptimWrapper, '
        'or bfloat16 with `bootmae_mm.AutocastOptimWrapper`',
    )
    if _replace_sync_bn(cfg.get('model') or {}):
        print_log('no GPU: BN instead of SyncBN', logger='current')
    if cfg.get('sync_bn'):
        print_log(f'no GPU: sync_bn={cfg.sync_bn!r} is ignored', logger='current')
        cfg.sync_bn = None
    for loader in LOADERS:
        if cfg.get(loader) is not None:
            cfg[loader]['pin_memory'] = False
    if cfg.launcher == 'pytorch':
        timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
        torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=timeout))
        wrapper = {'type': 'MMDistributedDataParallel', **(cfg.get('model_wrapper_cfg') or {})}
        if wrapper['type'] == 'MMDistributedDataParallel':
            wrapper['device_ids'] = None  # for GPUs only, but mmengine always sets one
        cfg.model_wrapper_cfg = wrapper


def launched_rank(launcher: str) -> int:
    """Rank of this process by its launcher's variables, known before the process group exists.

    Args:
        launcher: Value of ``--launcher``. Variables set by other launchers are ignored: a Slurm job may start mpirun.
    """
    name = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK').get(launcher, '')
    return int(os.environ.get(name, 0))


def finish(launcher: str = 'none', status: int = 0, within: float | None = None) -> None:
    """Leave the process group, if there is one, together with the other processes; the last call of a tool.

    Left to the interpreter's exit, gloo's threads sometimes abort a process whose work is done, and the launcher
    reports a failure. So a process with a launcher exits here, after Python's own exit functions.

    Args:
        launcher: Value of ``--launcher``.
        status: Exit status.
        within: Seconds after which the process exits even if others have not arrived, for a process that was told to
            end and ignores further signals. None: wait for them, up to the timeout of the process group.

    Raises:
        SystemExit: With the status, if it is not 0 and there is no launcher.
    """
    if within is not None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        end = threading.Timer(within, os._exit, [status])
        end.daemon = True
        end.start()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if launcher != 'none':
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    if status:
        raise SystemExit(status)


def is_explained(error: BaseException) -> bool:
    """Whether one line explains an error: a :class:`ConfigError`, or something that this project reports itself."""
    return any(isinstance(link, (ConfigError, FloatingPointError, OSError)) for link in chain_of(error))


def exit_with(error: Exception) -> NoReturn:
    """End a tool after an error: with one line, below a traceback if the error is not explained.

    Raises:
        SystemExit: With one line.
        Exception: The error itself, if it is a defect, or memory has run out.
    """
    cause = cause_of(error)
    if isinstance(error, pickle.UnpicklingError):  # of a file that mmengine reads by itself
        cause = f'a checkpoint does not load safely: {reason_of(error)}'
    elif cause is None:
        if not isinstance(error, (ValueError, TypeError, OSError, EOFError, FloatingPointError)):
            raise error
        if not is_explained(error):
            traceback.print_exc()
    raise SystemExit(f'error: {cause or (str(error) or repr(error)).strip().splitlines()[-1]}') from None


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error and the errors that led to it, each once: a cause may have been raised while handling its own effect."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def cause_of(error: BaseException) -> str | None:
    """What to report if a worker of the loader or another process has died, in one line; else None.

    torch raises the death of a worker from a signal handler, anywhere: the code that was running may turn it into an
    error of its own, with the first one as its context.
    """
    return next((cause for link in chain_of(error) if (cause := _cause_of_one(link))), None)


def _cause_of_one(error: BaseException) -> str | None:
    text = str(error).strip().splitlines()[0] if str(error).strip() else ''
    if isinstance(error, (EOFError, ConnectionResetError, BrokenPipeError)) and not text.startswith('Caught'):
        return 'a worker of the loader died while sending a batch, often for lack of memory; reduce num_workers'
    if not isinstance(error, RuntimeError):
        return None
    if text.startswith('DataLoader timed out'):
        return f'{text} (timeout of the dataloader): a worker hangs, perhaps in a file system that does not respond'
    if text.startswith('DataLoader worker'):
        return f'{text}: a worker of the loader died, often for lack of memory; reduce num_workers'
    if isinstance(error, torch.distributed.DistError) or 'gloo' in text or 'NCCL' in text:
        return f'another process died, or did not respond in time (env_cfg.dist_cfg.timeout): {text}'
    return None


def use_amp(cfg: Config) -> None:
    """Switch on mixed precision (``--amp``): bfloat16, unless the config sets a precision."""
    wrapper = cfg.optim_wrapper
    if wrapper.get('type', 'OptimWrapper') == 'OptimWrapper':
        wrapper.type = 'bootmae_mm.AutocastOptimWrapper'
        wrapper.dtype = 'bfloat16'
