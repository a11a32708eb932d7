"""Wrappers of optimizers, and their constructors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from bootmae_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS
from bootmae_mm.registry import OPTIM_WRAPPERS as BOOTMAE_OPTIM_WRAPPERS


@BOOTMAE_OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Mixed precision without scaling of the loss, which bfloat16 does not need.

    mmengine's ``AmpOptimWrapper`` always has a loss scaler, which waits for the device in every step, and refuses to
    run on a CPU. For float16 use that one.

    Args:
        dtype: ``'bfloat16'``, or ``'float32'`` for none.
        **kwargs: As for ``OptimWrapper``.
    """

    DTYPES = dict(bfloat16=torch.bfloat16, float32=torch.float32)

    def __init__(self, dtype: str = 'bfloat16', **kwargs: object) -> None:
        if dtype not in self.DTYPES:
            raise ValueError(
                f'dtype must be one of {", ".join(self.DTYPES)}, but is {dtype!r}; for float16 use AmpOptimWrapper'
            )
        super().__init__(**kwargs)
        self.dtype = self.DTYPES[dtype]

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, beside what mmengine does for gradient accumulation."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            yield


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor:
    """Two groups of parameters: with weight decay and without.

    Without: 1-D parameters, ``*.bias``, and parameters whose last name is in ``no_decay`` (as in ``optim_factory.py``
    of the authors, where mask tokens do decay). mmengine's default constructor can say the same, with a group and a log
    line for every single parameter, which makes fused and foreach optimizers slow.

    Args:
        optim_wrapper_cfg: Config of the wrapper, with ``optimizer``.
        paramwise_cfg: ``no_decay``: names without decay, ``('pos_embed', 'cls_token')`` by default.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        options = dict(paramwise_cfg or {})
        self.no_decay = tuple(options.pop('no_decay', ('pos_embed', 'cls_token')))
        if options:
            raise ValueError(f'unknown option {sorted(options)} in paramwise_cfg; there is no_decay')
        self.optim_wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.optim_wrapper_cfg.pop('optimizer'))

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies to a parameter."""
        return not (parameter.dim() <= 1 or name.endswith('.bias') or name.rsplit('.', 1)[-1] in self.no_decay)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the wrapper for the trainable parameters of ``model``."""
        if is_model_wrapper(model):
            model = model.module
        groups: dict[bool, list] = {True: [], False: []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups[self.decays(name, parameter)].append(parameter)
        params: list[dict] = [dict(params=groups[True]), dict(params=groups[False], weight_decay=0.0)]
        for group, label in zip(params, ('with', 'without'), strict=True):
            print_log(f'{len(group["params"])} parameters {label} weight decay', logger='current')
        optimizer = OPTIMIZERS.build(self.optimizer_cfg, default_args=dict(params=params))
        wrapper = {'type': 'OptimWrapper', **self.optim_wrapper_cfg}
        return OPTIM_WRAPPERS.build(wrapper, default_args=dict(optimizer=optimizer))
