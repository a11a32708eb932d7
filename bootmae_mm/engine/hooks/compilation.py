"""Compiled blocks."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from bootmae_mm.registry import HOOKS

from .teacher import unwrapped


def compile_blocks(model: nn.Module, **options: object) -> int:
    """Compile every block of encoders and decoders in place, each on its own: weights keep their names.

    Blocks that look alike share what is compiled, which a whole model could not, so that it takes a minute and not ten.

    Args:
        model: With such blocks.
        **options: Of ``torch.compile``; shapes are static unless ``dynamic`` says otherwise.

    Returns:
        The number of blocks.
    """
    # Here, so that the tools' --help need not wait for mmpretrain.
    from bootmae_mm.models.block import EncoderBlock
    from bootmae_mm.models.neck import DecoderBlock

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
            torch.compile(torch.nn.GELU(), **self.options)(torch.zeros(8, device=device))
        except Exception as error:  # noqa: BLE001  every backend has errors of its own
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            runner.logger.warning(f'torch.compile does not work here, blocks run as they are: {reason}')
            return
        runner.logger.info(f'{compile_blocks(model, **self.options)} blocks are compiled as they are first run.')
