"""torch.compile for the blocks."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from bootmae_mm.registry import HOOKS
from bootmae_mm.validation import validated

from ..sharding import unwrapped

MAX_VARIANTS = 32


def compile_blocks(model: nn.Module, **options: object) -> int:
    """Compile every block of encoders and decoders separately and in place; weights keep their names.

    Equal blocks share their compiled code, so that compiling takes one minute instead of ten. Sets two options of torch
    for the process: blocks are not split at DDP's buckets (they are smaller, and gradients are sent between blocks
    anyway), and a block may have more variants, one per kind of call and batch, than torch's limit of 8.

    Args:
        model: Model with such blocks.
        **options: Options of ``torch.compile``; shapes are static unless ``dynamic`` is given.

    Returns:
        Number of blocks.
    """
    # Imported here, so that --help of the tools does not import mmpretrain.
    from bootmae_mm.models import BLOCKS

    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.recompile_limit = max(MAX_VARIANTS, torch._dynamo.config.recompile_limit)
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
    for block in blocks:
        block.compile(**{'dynamic': False, **options})
    return len(blocks)


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles the blocks before training. If that does not work (no compiler), the log says so.

    Args:
        enabled: Whether to compile.
        options: Options of ``torch.compile``, such as ``dict(mode='max-autotune-no-cudagraphs')``.
    """

    priority = 'VERY_HIGH'

    @validated
    def __init__(self, enabled: bool = True, options: dict | None = None) -> None:
        self.enabled = enabled
        self.options = dict(options or {})

    def before_train(self, runner: Runner) -> None:
        """Compile, if a trial works on this device."""
        if not self.enabled:
            return
        model = unwrapped(runner.model)
        device = next(model.parameters()).device
        try:
            self._try(device, runner.optim_wrapper)
        except Exception as error:  # noqa: BLE001  backends raise their own errors
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            runner.logger.warning(f'torch.compile does not work here, blocks run without it: {reason}')
            return
        runner.logger.info(f'{compile_blocks(model, **self.options)} blocks are compiled when they first run.')

    def _try(self, device: torch.device, optim_wrapper: OptimWrapper) -> None:
        """Compile the layers of a block, with gradients and in the precision of training."""
        with torch.random.fork_rng(devices=[]):  # keep the run's random numbers
            trial = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU()).to(device)
        with optim_wrapper.optim_context(trial):
            out = torch.compile(trial, **self.options)(torch.zeros(8, 64, device=device))
        out.float().sum().backward()
