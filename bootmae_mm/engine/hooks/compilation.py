"""Compiled blocks."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from bootmae_mm.registry import HOOKS

from ..sharding import unwrapped

MOST_FORMS = 32


def compile_blocks(model: nn.Module, **options: object) -> int:
    """Compile every block of encoders and decoders in place, each on its own: weights keep their names.

    Blocks that look alike share what is compiled, which a whole model could not, so that it takes a minute and not ten.
    Sets two of torch's options for the process: blocks are not cut at the borders of DDP's buckets (they are smaller
    than those, and gradients are sent between blocks anyway), and there may be as many forms of a block as there are
    kinds of calls and batches (torch's limit of 8 is what training and a validation take).

    Args:
        model: With such blocks.
        **options: Of ``torch.compile``; shapes are static unless ``dynamic`` says otherwise.

    Returns:
        The number of blocks.
    """
    # Here, so that the tools' --help need not wait for mmpretrain.
    from bootmae_mm.models.block import EncoderBlock
    from bootmae_mm.models.neck import DecoderBlock

    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.recompile_limit = max(MOST_FORMS, torch._dynamo.config.recompile_limit)
    blocks = [module for module in model.modules() if isinstance(module, (EncoderBlock, DecoderBlock))]
    for block in blocks:
        block.compile(**{'dynamic': False, **options})
    return len(blocks)


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles the blocks before training. Where that does not work (no compiler), a line in the log says so.

    Args:
        enabled: False to do nothing.
        options: Of ``torch.compile``, such as ``dict(mode='max-autotune-no-cudagraphs')``.
    """

    priority = 'VERY_HIGH'

    def __init__(self, enabled: bool = True, options: dict | None = None) -> None:
        self.enabled = enabled
        self.options = dict(options or {})

    def before_train(self, runner: Runner) -> None:
        """Compile, if a trial on this machine's device works."""
        if not self.enabled:
            return
        model = unwrapped(runner.model)
        device = next(model.parameters()).device
        try:
            self._try(device, runner.optim_wrapper)
        except Exception as error:  # noqa: BLE001  every backend has errors of its own
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            runner.logger.warning(f'torch.compile does not work here, blocks run as they are: {reason}')
            return
        runner.logger.info(f'{compile_blocks(model, **self.options)} blocks are compiled as they are first run.')

    def _try(self, device: torch.device, optim_wrapper: OptimWrapper) -> None:
        """Compile what blocks are made of, with gradients and in the precision of training."""
        with torch.random.fork_rng(devices=[]):  # the run's random numbers are not to depend on this
            trial = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU()).to(device)
        with optim_wrapper.optim_context(trial):
            out = torch.compile(trial, **self.options)(torch.zeros(8, 64, device=device))
        out.float().sum().backward()
