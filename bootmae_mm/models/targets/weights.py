"""Frozen modules whose weights stay in a file of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from bootmae_mm.checkpoints.encoder import load_weights
from bootmae_mm.validation import ConfigError


class FrozenModule(nn.Module):
    """Runs a module that is never trained. Its weights come from a file and are not in the checkpoints of a run.

    The module is no child of this one: state dicts, optimizers, and the wrappers of DDP and FSDP do not see it. It
    moves to other devices with this one.

    Args:
        module: Module to run.
        checkpoint: Path of its weights.
        prefix: Prefix of its keys in the file.
        part: Name of the part of the module whose weights the file holds; by default all of it.
        convert: Turns the names of the file into those of that part.
    """

    module: nn.Module

    def __init__(
        self,
        module: nn.Module,
        checkpoint: str,
        prefix: str = '',
        part: str = '',
        convert: Callable[[dict], dict] | None = None,
    ) -> None:
        super().__init__()
        module.requires_grad_(False)
        module.eval()  # of mmpretrain's, it returns nothing
        object.__setattr__(self, 'module', module)
        self._source = (checkpoint, prefix, part, convert)
        self._is_loaded = False

    def _apply(self, *args: Any, **kwargs: Any) -> FrozenModule:
        self.module._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)

    def init_weights(self) -> None:
        """Load the weights from their file, strictly."""
        checkpoint, prefix, part, convert = self._source
        try:
            count = load_weights(self.module.get_submodule(part), checkpoint, prefix, convert)
        except ConfigError as error:
            raise type(error)(f'weights of a target: {error}') from error
        self._is_loaded = True
        print_log(f'target: {count} weights loaded from {checkpoint}', logger='current')

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Run the module. Load its weights first where nothing has initialized the model, as in evaluation."""
        if not self._is_loaded and not images.is_meta:
            self.init_weights()
        return self.module(images)
