"""Values of a config that are ``'auto'``: chosen from the images, the model and the machine, each with a reason.

The rules, all of them relative to the paper's run (ViT-B, 1.28 million images, 800 epochs, batch 4096):

- As many images are seen as there, 10^9, but at most 800 times each. Without a GPU: 5,000, as a trial.
- The effective batch grows with the square root of the number of images; the lr with the square root of the batch
  (Malladi et al. 2022, arXiv 2205.10287, for Adam).
- The teacher averages over the same shares of the run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from bootmae_mm.config import value_at
from bootmae_mm.registry import DATASETS
from bootmae_mm.validation import require

from .length import RunLength, run_length

AUTO = 'auto'
PAPER_IMAGES, PAPER_EPOCHS, PAPER_BATCH, PAPER_LR = 1_281_167, 800, 4096, 2.4e-3
CPU_SAMPLES = 5_000
MAX_BATCH = 512  # of one GPU; a ViT-S fills it long before
# Decay of the paper's teacher at three points of the run, as the share of its 250,000 steps that it averages over.
DECAYS = ((0.0, 1e3 / 250e3), (1 / 8, 1e4 / 250e3), (1 / 2, 1e5 / 250e3))
# Bytes that training in bfloat16 keeps for the backward pass, for each token of each block and unit of its width:
# counted with torch.autograd.graph.saved_tensors_hooks for ViT-T to ViT-L, of which this is within 2 %.
ENCODER_BYTES, DECODER_BYTES = 37.4, 49.4
BYTES_OF_A_WEIGHT = 20  # value, gradient, two moments, the teacher's


class Choice(NamedTuple):
    """One chosen value."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Machine:
    """What a run has.

    Attributes:
        processes: Number of processes, on all nodes.
        local: Number of processes on this node.
        cores: CPU cores that this node may use.
        gpu_bytes: Memory of a GPU, or None without GPUs.
    """

    processes: int
    local: int
    cores: int
    gpu_bytes: int | None


def choose_auto(cfg: Config, is_given: Callable[[str], bool] = lambda key: False) -> dict[str, Any]:
    """Replace every ``'auto'`` in a config, and log what was chosen as a table.

    Args:
        cfg: Config with the command line applied and ``launcher`` set; changed in place.
        is_given: Whether the user sets a dotted key.

    Returns:
        The chosen values by dotted key.
    """
    if all(value_at(cfg, key) != AUTO for key in KEYS):
        return {}
    if cfg.train_cfg.get('by_epoch') is False and cfg.train_cfg.get('max_epochs') == AUTO:
        cfg.train_cfg.pop('max_epochs')  # a run by iterations
    images = count_images(cfg)
    machine = this_machine(cfg.launcher)
    choices = choose(cfg, images, machine, not is_given('param_scheduler'))
    for choice in choices:
        _set(cfg, choice.key, choice.value)
    log_table(choices, images, machine)
    # Of the schedulers only a value is set: their positions still have to follow the length.
    return {choice.key: choice.value for choice in choices if not choice.key.startswith('param_scheduler')}


def count_images(cfg: Config) -> int:
    """Number of images of the training data set."""
    dataset = dict(cfg.train_dataloader.dataset)
    return len(DATASETS.build({**dataset, 'pipeline': []}))


def this_machine(launcher: str) -> Machine:
    """The processes of this run, and what this node has."""
    total = dict(pytorch='WORLD_SIZE', slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE').get(launcher, '')
    local = dict(pytorch='LOCAL_WORLD_SIZE', slurm='SLURM_NTASKS_PER_NODE', mpi='OMPI_COMM_WORLD_LOCAL_SIZE')
    processes = int(os.environ.get(total, 1))
    here = int(os.environ.get(local.get(launcher, ''), min(processes, max(1, torch.cuda.device_count()))))
    cores = _cores(launcher, here)
    memory = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    return Machine(processes, here, cores, memory)


def _cores(launcher: str, local: int) -> int:
    """Cores that this node may use: within the process's affinity, and the quota of a container.

    Slurm and MPI usually bind each process to cores of its own.
    """
    cores = len(os.sched_getaffinity(0))
    if launcher in ('slurm', 'mpi') and cores < (os.cpu_count() or 1):
        cores *= local
    quota = Path('/sys/fs/cgroup/cpu.max')
    if quota.is_file():
        allowed, period = quota.read_text().split()
        cores = cores if allowed == 'max' else min(cores, max(1, round(int(allowed) / int(period))))
    return cores


def choose(cfg: Config, images: int, machine: Machine, scale_schedule: bool = True) -> list[Choice]:
    """Choose all values of a config that are ``'auto'``.

    Args:
        cfg: The config; not changed.
        images: Number of images.
        machine: What the run has.
        scale_schedule: Scale the last lr of the schedule with a chosen lr.
    """
    found: list[Choice] = []

    def pick(key: str, value: Any, reason: str) -> Any:
        """The config's own value, or this one."""
        if value_at(cfg, key) != AUTO:
            return value_at(cfg, key)
        found.append(Choice(key, value, reason))
        return value

    on_gpu = machine.gpu_bytes is not None
    wanted = _power_of_two(min(PAPER_BATCH, max(32, PAPER_BATCH * math.sqrt(images / PAPER_IMAGES))))
    wants_batch = value_at(cfg, 'train_dataloader.batch_size') == AUTO
    fitting, why = _fitting_batch(cfg, machine) if wants_batch else (MAX_BATCH, '')
    share = max(1, wanted // machine.processes)
    batch = pick(
        'train_dataloader.batch_size',
        max(1, min(share, fitting, images // machine.processes)),
        f'for {images:,} images' if share <= min(fitting, images) else why if fitting < images else 'all images',
    )
    accumulated = pick(
        'optim_wrapper.accumulative_counts',
        max(1, wanted // (batch * machine.processes)) if on_gpu else 1,
        f'about {wanted} images a step, for {images:,} images' if on_gpu else 'no GPU: one batch a step',
    )
    effective = batch * machine.processes * (accumulated if isinstance(accumulated, int) else 1)
    pick(
        'optim_wrapper.optimizer.lr',
        _rounded(PAPER_LR * math.sqrt(effective / PAPER_BATCH)),
        f"the paper's {PAPER_LR:g} x sqrt({effective} / {PAPER_BATCH})",
    )
    if scale_schedule and found and found[-1].key == 'optim_wrapper.optimizer.lr':
        ratio = found[-1].value / PAPER_LR
        for index, scheduler in enumerate(cfg.get('param_scheduler') or []):
            if scheduler.get('eta_min'):
                key = f'param_scheduler.{index}.eta_min'
                found.append(Choice(key, _rounded(scheduler['eta_min'] * ratio), 'in proportion to the lr'))
    samples = PAPER_IMAGES * PAPER_EPOCHS if on_gpu else CPU_SAMPLES
    epochs = pick(
        'train_cfg.max_epochs',
        max(1, min(PAPER_EPOCHS, round(samples / images))),
        (
            f'{PAPER_EPOCHS} at most, and 10^9 images seen'
            if on_gpu
            else f'no GPU: a trial with {CPU_SAMPLES:,} images seen'
        ),
    )
    by_epoch = 'max_epochs' in cfg.train_cfg
    length = run_length({**cfg.train_cfg, **({'max_epochs': epochs} if by_epoch else {})})
    in_epoch = max(1, images // (batch * machine.processes))
    if length is not None:
        _pick_schedules(pick, length, in_epoch, effective // (batch * machine.processes))
    pick('optim_wrapper.dtype', 'bfloat16' if on_gpu else 'float32', 'GPU' if on_gpu else 'no GPU')
    workers = min(12, max(1, machine.cores // machine.local - 1)) if on_gpu else min(4, machine.cores // 4)
    why = f'{machine.cores} cores, {machine.local} processes on this machine'
    workers = pick('train_dataloader.num_workers', workers, why)
    pick('test_dataloader.batch_size', batch, 'as for training')
    pick('test_dataloader.num_workers', workers, 'as for training')
    pick(
        'env_cfg.num_threads',
        1 if on_gpu else max(1, machine.cores // machine.local - workers),
        'GPU' if on_gpu else f'{machine.cores} cores, {machine.local} processes with {workers} workers each',
    )
    return found


def _pick_schedules(pick: Any, length: RunLength, in_epoch: int, accumulated: int) -> None:
    """Choose what follows the length of the run."""
    steps = (length.number * in_epoch if length.by_epoch else length.number) / accumulated
    decay = [
        (round(place * length.number, 3), _rounded(max(0.0, 1 - 1 / max(1.0, share * steps)), 6))
        for place, share in DECAYS
    ]
    pick('default_hooks.ema.decay', decay, f"the paper's, for {steps:,.0f} steps")
    unit = 'epochs' if length.by_epoch else 'iterations'
    pick('default_hooks.checkpoint.interval', max(1, round(length.number / 20)), f'20 in {length.number:g} {unit}')
    pick('default_hooks.reconstruction.interval', max(1, round(length.number / 10)), f'10 in {length.number:g} {unit}')
    pick('default_hooks.logger.interval', max(1, min(100, in_epoch // 2)), f'{in_epoch:,} iterations an epoch')


KEYS = (
    'train_dataloader.batch_size',
    'train_dataloader.num_workers',
    'test_dataloader.batch_size',
    'test_dataloader.num_workers',
    'optim_wrapper.accumulative_counts',
    'optim_wrapper.optimizer.lr',
    'optim_wrapper.dtype',
    'train_cfg.max_epochs',
    'default_hooks.ema.decay',
    'default_hooks.checkpoint.interval',
    'default_hooks.reconstruction.interval',
    'default_hooks.logger.interval',
    'env_cfg.num_threads',
)


def _fitting_batch(cfg: Config, machine: Machine) -> tuple[int, str]:
    """The largest batch of a process, and why."""
    if machine.gpu_bytes is None:
        return 32, 'no GPU: 32 at most'
    fixed, each = memory_of(cfg)
    room = 0.7 * machine.gpu_bytes - fixed
    fits = _power_of_two(min(MAX_BATCH, max(1, room / each)))
    return fits, f'{fits} at most: {each / 1e6:.0f} MB an image, estimated, in {machine.gpu_bytes / 2**30:.0f} GiB'


def memory_of(cfg: Config) -> tuple[float, float]:
    """Estimate the memory of training in bfloat16.

    Args:
        cfg: Config of a pretraining run.

    Returns:
        Bytes of weights, gradients and optimizer; bytes kept for the backward pass of one image.
    """
    from bootmae_mm.models import BootMAEViT
    from bootmae_mm.registry import MODELS

    is_pretraining = str(cfg.model.get('type', '')).endswith('BootMAE')
    require(is_pretraining, "train_dataloader.batch_size='auto' is for pretraining: give a number")
    # mmpretrain's HiViT reads values of tensors while it is built.
    with torch.device('cpu' if 'HiViT' in cfg.model.backbone.type else 'meta'):
        model = MODELS.build({key: value for key, value in cfg.model.items() if key != 'init_cfg'})
    encoder = model.backbone
    rows, columns = encoder.grid_size
    patches = rows * columns
    masking = cfg.train_dataloader.dataset.get('masking') or {}
    visible = round(patches * (1 - masking.get('ratio', 0.75))) + 1
    width = encoder.embed_dims
    depth = len(encoder.main_blocks())
    kept = ENCODER_BYTES * visible * depth * width
    for decoder in model.neck.decoders.values():
        kept += DECODER_BYTES * (patches + 1) * len(decoder.blocks) * decoder.width
    if not isinstance(encoder, BootMAEViT):
        kept *= 2  # an encoder with more patches in its first stages; a guess
    weights = sum(parameter.numel() for parameter in model.parameters())
    return BYTES_OF_A_WEIGHT * weights, kept * masking.get('per_image', 1)


def log_table(choices: list[Choice], images: int, machine: Machine) -> None:
    """Log what was chosen, and why."""
    device = 'no GPU' if machine.gpu_bytes is None else f'{machine.processes} GPU(s)'
    rows = [(choice.key, str(choice.value), choice.reason) for choice in choices]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f'  {key:{widths[0]}}  {value:{widths[1]}}  {reason}' for key, value, reason in rows]
    title = f'chosen for {images:,} images, {device}, {machine.cores} CPU cores (--cfg-options KEY=VALUE overrides):'
    print_log('\n'.join([title, *lines]), logger='current')


def _set(cfg: Config, key: str, value: Any) -> None:
    *parents, last = key.split('.')
    node = cfg
    for part in parents:
        node = node[int(part)] if part.isdigit() else node[part]
    node[last] = value


def _power_of_two(number: float) -> int:
    """The largest power of two that is not larger."""
    return 2 ** int(math.log2(max(1, number)))


def _rounded(number: float, digits: int = 3) -> float:
    return float(f'{number:.{digits}g}')
