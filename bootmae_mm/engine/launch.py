"""From a command line to a Runner: what tools/train.py and tools/test.py share."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from bootmae_mm.checkpoints.reading import allow_mmengine_checkpoints
from bootmae_mm.config import load_config

from .length import fit_to_length

MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def read_config(path: str, options: dict | None = None, work_dir: str | None = None, launcher: str = 'none') -> Config:
    """Read the config of a run.

    Args:
        path: Path of the config.
        options: ``--cfg-options``.
        work_dir: ``--work-dir``.
        launcher: ``--launcher``.

    Returns:
        The config, ready for a Runner.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If the config or an option sets a key that nothing reads.
    """
    cfg = load_config(path, options)
    fit_to_length(cfg, path, options or {})
    # For its own hooks mmengine needs the None that switches one off; for others it refuses None.
    if 'default_hooks' in cfg:
        cfg.default_hooks = {
            name: hook for name, hook in cfg.default_hooks.items() if hook is not None or name in MMENGINE_HOOKS
        }
    _fill_erasing(cfg)
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{Path(path).stem}'
    return cfg


def _fill_erasing(cfg: Config) -> None:
    """Let erased pixels have the mean and std that the model's preprocessor normalizes with."""
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
    """Replace SyncBN, which needs GPUs, by BN; return how often."""
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
    """Fit a config to this machine and start what the Runner cannot start by itself.

    Without a GPU: several processes talk through gloo (mmengine would ask for CUDA), float16 training, which needs a
    GPU, is refused, batch norm is not synchronised, and memory is not pinned.

    Args:
        cfg: Of :func:`read_config`, changed in place.
        training: False for evaluation, which builds no optimizer.

    Raises:
        ValueError: If more processes than GPUs were started, or float16 is wanted without a GPU.
    """
    allow_mmengine_checkpoints()
    for loader in LOADERS:
        if cfg.get(loader) is not None and not cfg[loader].get('num_workers'):
            cfg[loader].update(persistent_workers=False, timeout=0)  # torch refuses them without workers
    if cfg.get('find_unused_parameters') is not None:  # mmengine looks at it only where there is no wrapper
        wrapper = {'type': 'MMDistributedDataParallel', **(cfg.get('model_wrapper_cfg') or {})}
        if wrapper['type'] == 'MMDistributedDataParallel':
            cfg.model_wrapper_cfg = {**wrapper, 'find_unused_parameters': cfg.find_unused_parameters}
    if torch.cuda.is_available():
        local_rank, count = int(os.environ.get('LOCAL_RANK', 0)), torch.cuda.device_count()
        if cfg.launcher == 'pytorch' and local_rank >= count:
            raise ValueError(f'process {local_rank} of this machine has no GPU: there are {count}')
        return
    if training and (cfg.get('optim_wrapper') or {}).get('type') == 'AmpOptimWrapper':
        raise ValueError(
            'AmpOptimWrapper needs a GPU, and there is none; on a CPU use '
            '--cfg-options optim_wrapper.type=OptimWrapper, or bfloat16 with '
            '`bootmae_mm.AutocastOptimWrapper`'
        )
    if _replace_sync_bn(cfg.get('model') or {}):
        print_log('no GPU: BN instead of SyncBN', logger='current')
    if cfg.get('sync_bn'):
        print_log(f'no GPU: sync_bn={cfg.sync_bn!r} is left out', logger='current')
        cfg.sync_bn = None
    for loader in LOADERS:
        if cfg.get(loader) is not None:
            cfg[loader]['pin_memory'] = False
    if cfg.launcher == 'pytorch':
        timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
        torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=timeout))
        wrapper = {'type': 'MMDistributedDataParallel', **(cfg.get('model_wrapper_cfg') or {})}
        if wrapper['type'] == 'MMDistributedDataParallel':
            wrapper['device_ids'] = None  # they are for GPUs only; mmengine names one always
        cfg.model_wrapper_cfg = wrapper


def launched_rank(launcher: str) -> int:
    """Number of this process among all, by what its launcher says; known before the processes have met.

    Args:
        launcher: Of ``--launcher``. What another one says is of no account: a batch job of Slurm may start mpirun.
    """
    name = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK').get(launcher, '')
    return int(os.environ.get(name, 0))


def finish(launcher: str = 'none', status: int = 0, within: float | None = None) -> None:
    """Leave the process group, if there is one, together with the other processes; the last thing that a tool does.

    Left to the interpreter's exit, gloo's threads now and then abort a process whose work is done, and the launcher
    reports a failure. So a process that has a launcher ends right here, after Python's own exit functions.

    Args:
        launcher: Of ``--launcher``.
        status: The process ends with.
        within: Seconds after which it ends even if the others have not come; for a process that was told to end, which
            does not listen to further signals. None: it waits for them, up to the timeout of the process group.

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


def is_refusal(error: BaseException) -> bool:
    """Whether this package itself has refused something, which one line explains; a registry may have passed it on.

    That is, whether a ``raise`` of this package made the error or one that led to it. (What comes out of a worker of a
    loader has left that behind.)
    """
    package = Path(__file__).resolve().parents[1]
    link: BaseException | None = error
    while link is not None:
        frames = traceback.extract_tb(link.__traceback__)
        ours = frames and package in Path(frames[-1].filename).resolve().parents
        if ours and (frames[-1].line or '').startswith('raise'):
            return True
        link = link.__cause__ or link.__context__
    return False


def cause_of(error: BaseException) -> str | None:
    """What is reported where a worker of the loader or another process is gone, in one line; else None.

    torch raises the death of a worker out of a signal handler, so anywhere: what was running then may turn it into an
    error of its own, which still has it as its context.
    """
    link: BaseException | None = error
    while link is not None:
        if cause := _cause_of_one(link):
            return cause
        link = link.__cause__ or link.__context__
    return None


def _cause_of_one(error: BaseException) -> str | None:
    text = str(error).strip().splitlines()[0] if str(error).strip() else ''
    if isinstance(error, (EOFError, ConnectionResetError, BrokenPipeError)) and not text.startswith('Caught'):
        return 'a worker of the loader has died as it sent a batch, often for lack of memory; set num_workers lower'
    if not isinstance(error, RuntimeError):
        return None
    if text.startswith('DataLoader timed out'):
        return f'{text} (timeout of the dataloader): a worker hangs, perhaps in a file system that does not answer'
    if text.startswith('DataLoader worker'):
        return f'{text}: a worker of the loader has died, often for lack of memory; set num_workers lower'
    if isinstance(error, torch.distributed.DistError) or 'gloo' in text or 'NCCL' in text:
        return f'another process has died, or not answered in time (env_cfg.dist_cfg.timeout): {text}'
    return None


def use_amp(cfg: Config) -> None:
    """Turn mixed precision on (``--amp``): bfloat16 where nothing is set, else what the config says."""
    wrapper = cfg.optim_wrapper
    if wrapper.get('type', 'OptimWrapper') == 'OptimWrapper':
        wrapper.type = 'bootmae_mm.AutocastOptimWrapper'
        wrapper.dtype = 'bfloat16'
