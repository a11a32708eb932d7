"""Scaling of a step with processes, batch size and resolution."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from .step import TrainingStep
from .timing import seconds_of, synchronize


def check_processes(counts: list[int], device: torch.device) -> None:
    """Refuse more processes than GPUs (on CPUs any number is allowed)."""
    if device.type == 'cuda' and max(counts, default=1) > torch.cuda.device_count():
        raise ValueError(f'{max(counts)} processes need as many GPUs, but there are {torch.cuda.device_count()}')


def measure_processes(
    cfg: Config, device: torch.device, counts: list[int], batch: int, repeats: int, dtype: str | None
) -> list[dict]:
    """Measure steps of several processes with a fixed batch each: gloo on CPUs, sharing the threads; nccl on GPUs.

    Returns:
        For each count ``processes``, ``images_per_second`` and ``efficiency``: images per second and process over those
        of one process with the same threads.

    Raises:
        ConfigError: If there are fewer GPUs than processes.
    """
    check_processes(counts, device)
    threads = max(1, torch.get_num_threads() // max(counts))
    results: list[dict] = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (count, folder, cfg.to_dict(), device.type == 'cuda', batch, repeats, dtype, threads)
            torch.multiprocessing.spawn(_process, arguments, nprocs=count)
            seconds = float(Path(folder, 'seconds').read_text())
        speed = count * batch / seconds
        alone = results[0]['images_per_second'] / results[0]['processes'] if results else speed / count
        results.append(dict(processes=count, images_per_second=speed, efficiency=speed / count / alone))
    return results


def _process(
    rank: int, count: int, folder: str, cfg: dict, cuda: bool, batch: int, repeats: int, dtype: str | None, threads: int
) -> None:
    """Run one of the processes; the first writes the median seconds of a step."""
    import bootmae_mm  # noqa: F401  before anything of OpenMMLab, for the operators

    torch.set_num_threads(threads)
    device = torch.device('cuda', rank) if cuda else torch.device('cpu')
    if cuda:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        'nccl' if cuda else 'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=count
    )
    step = TrainingStep(Config(cfg), batch, device, dtype)
    distributed = Config(cfg).get('model_wrapper_cfg') or {}
    known = ('broadcast_buffers', 'gradient_as_bucket_view', 'static_graph')
    options = {key: distributed[key] for key in known if key in distributed}
    model: nn.Module = nn.parallel.DistributedDataParallel(
        _Loss(step.model), device_ids=[rank] if cuda else None, **options
    )
    taken = []
    for turn in range(2 + repeats):
        synchronize(device)
        torch.distributed.barrier()
        start = time.perf_counter()
        with step.optim_wrapper.optim_context(model):
            loss = model(step.model.data_preprocessor(dict(step.data), True))
        step.optim_wrapper.update_params(loss)
        step.move_teacher()
        synchronize(device)
        if turn >= 2:
            taken.append(time.perf_counter() - start)
    if rank == 0:
        Path(folder, 'seconds').write_text(str(statistics.median(taken)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


class _Loss(nn.Module):
    """A model whose forward pass returns the weighted loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, data: dict) -> torch.Tensor:
        return self.model.parse_losses(self.model(**data, mode='loss'))[0]


def measure_growth(
    cfg: Config, device: torch.device, batches: list[int], sizes: list[int], repeats: int, dtype: str | None
) -> list[dict]:
    """Measure steps of several batch sizes at the config's resolution, and of several resolutions at the smallest.

    Returns:
        ``batch``, ``img_size``, ``step_ms``, ``ms_per_image`` of each combination.

    Raises:
        ConfigError: If a size is not divisible by the patch.
    """
    own = cfg.model.backbone.img_size
    results = []
    for batch, size in [(batch, own) for batch in batches] + [(min(batches), size) for size in sizes if size != own]:
        changed = Config(cfg.to_dict())
        changed.model.backbone.img_size = size
        patch = changed.model.backbone.get('patch_size', 16)
        changed.train_dataloader.dataset.masking.grid_size = (
            size // patch if isinstance(size, int) else tuple(side // patch for side in size)
        )
        step = TrainingStep(changed, batch, device, dtype)
        seconds = statistics.median(seconds_of(step, device, 2, repeats))
        results.append(dict(batch=batch, img_size=size, step_ms=1e3 * seconds, ms_per_image=1e3 * seconds / batch))
    return results
