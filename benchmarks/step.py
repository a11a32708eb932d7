"""One training step of a pretraining config, on random images."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import init_default_scope

from bootmae_mm.data import build_masking
from bootmae_mm.engine.hooks.monitor import gradient_norm
from bootmae_mm.engine.hooks.teacher import ema_update, moving_pairs
from bootmae_mm.models import PixelTarget
from bootmae_mm.registry import MODELS

from .flops import step_macs
from .timing import Stopwatch, matrix_ceiling, peak_memory, reset_peak_memory, seconds_of

DECAY = 0.999


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress mmengine's log lines on the initialization of weights."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def random_batch(cfg: Config, batch: int, seed: int = 0) -> dict:
    """Make a random batch like that of the config's loader: uint8 images, and masks.

    Args:
        cfg: Pretraining config.
        batch: Number of images.
        seed: Seed of images and masks.

    Returns:
        ``inputs`` (B, 3, H, W), ``ids_keep`` (B, V), ``ids_mask`` (B, M).
    """
    size = cfg.model.backbone.img_size
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
    masking = build_masking(cfg.train_dataloader.dataset.masking)
    ids_keep, ids_mask = masking.batch([seed * batch + index for index in range(batch)])
    return dict(
        inputs=images.permute(0, 3, 1, 2), ids_keep=torch.from_numpy(ids_keep), ids_mask=torch.from_numpy(ids_mask)
    )


def precision(optim_wrapper: OptimWrapper, device: torch.device) -> torch.dtype:
    """Data type of matrix products under a wrapper."""
    if hasattr(optim_wrapper, 'loss_scaler'):  # mmengine's AmpOptimWrapper
        return optim_wrapper.cast_dtype or torch.get_autocast_dtype(device.type)
    return getattr(optim_wrapper, 'dtype', torch.float32)


def _note_norm(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Norm of the gradients, as :class:`MonitorHook` computes it."""
    gradient_norm(optimizer)


class TrainingStep:
    """Forward pass, backward pass, optimizer and momentum encoder, as in a run of the config but without a Runner.

    Args:
        cfg: Pretraining config. Gradients are not accumulated: every step has all parts.
        batch: Number of images per step.
        device: Device to run on.
        dtype: ``'float32'`` or ``'bfloat16'``; the config's by default.
    """

    def __init__(self, cfg: Config, batch: int, device: torch.device, dtype: str | None = None) -> None:
        init_default_scope(cfg.get('default_scope', 'mmpretrain'))
        self.device = device
        self.batch = batch
        torch.manual_seed(0)
        with quiet():
            self.model = MODELS.build(cfg.model)
            self.model.init_weights()
            self.model.to(device).train()
            wrapper = dict(cfg.optim_wrapper, accumulative_counts=1)
            if dtype is not None:
                wrapper.update(type='bootmae_mm.AutocastOptimWrapper', dtype=dtype)
            self.optim_wrapper = build_optim_wrapper(self.model, wrapper)
        self.dtype = precision(self.optim_wrapper, device)
        self.optim_wrapper.optimizer.register_step_pre_hook(_note_norm)
        torch.backends.cudnn.benchmark = bool(cfg.get('env_cfg', {}).get('cudnn_benchmark', False))
        self.teacher, self.student = moving_pairs(self.model) if self.model.has_momentum_teacher else ([], [])
        self.data = random_batch(cfg, batch)
        if device.type == 'cuda':  # as the loader does
            self.data = {name: value.pin_memory() for name, value in self.data.items()}

    def __call__(self) -> None:
        """Run one step, including the copy of the batch to the device."""
        self.model.train_step(dict(self.data), self.optim_wrapper)
        self.move_teacher()

    def move_teacher(self) -> None:
        """Update the momentum encoder, if there is one."""
        if self.teacher:
            ema_update(self.teacher, self.student, DECAY)

    def parts(self, repeats: int) -> dict[str, float]:
        """Median seconds of the parts of a step; ``optimizer`` includes the logged norm of the gradients."""
        model, wrapper = self.model, self.optim_wrapper
        methods: list[tuple[object, str, str]] = [
            (model.backbone, 'encode_visible', 'student'),
            (model.neck, 'forward', 'decoders and heads'),
            (wrapper, 'backward', 'backward'),
            (wrapper, 'step', 'optimizer'),
            (self, 'move_teacher', 'EMA'),
        ]
        if model.masking is not None:  # runs the teacher, for the targets too
            methods.append((model.masking, 'forward', 'teacher'))
        for head in model.heads.values():
            methods.append((head, 'loss', 'decoders and heads'))
            if not isinstance(head.target, PixelTarget):
                methods.append((head.target, 'forward', 'teacher' if head.target.uses_teacher else 'target'))
        watches = []
        for _ in range(repeats):
            watches.append(Stopwatch(self.device))
            with watches[-1].part('step'), watches[-1].watching(*methods):
                self()
        found: dict[str, list[float]] = {}
        for watch in watches:
            parts = watch.seconds
            parts['rest'] = parts.pop('step') - sum(parts.values())
            for name, seconds in parts.items():
                found.setdefault(name, []).append(seconds)
        return {name: statistics.median(seconds) for name, seconds in found.items()}


def measure_step(step: TrainingStep, warmup: int, repeats: int) -> dict:
    """Measure time, memory and arithmetic of a step.

    Returns:
        ``images_per_second``, ``step_ms``, ``parts_ms``, ``peak_memory_bytes``, ``macs_per_image`` (of the method),
        ``macs_needed`` (actually computed), ``flops`` (FLOP/s of the method), ``ceiling_flops`` (of a matrix product)
        and ``share_of_ceiling``.
    """
    reset_peak_memory(step.device)
    seconds = statistics.median(seconds_of(step, step.device, warmup, repeats))
    memory = peak_memory(step.device)
    rows, num_masked = step.data['ids_mask'].shape
    macs, needed = (step_macs(step.model, num_masked, needed, rows // step.batch) for needed in (False, True))
    flops = 2 * sum(macs.values()) * step.batch / seconds
    ceiling = matrix_ceiling(step.device, step.dtype)
    return dict(
        batch=step.batch,
        dtype=str(step.dtype).removeprefix('torch.'),
        images_per_second=step.batch / seconds,
        step_ms=1e3 * seconds,
        parts_ms={name: 1e3 * value for name, value in step.parts(repeats).items()},
        peak_memory_bytes=memory,
        macs_per_image=macs,
        macs_needed=needed,
        flops=flops,
        ceiling_flops=ceiling,
        share_of_ceiling=flops / ceiling,
    )
