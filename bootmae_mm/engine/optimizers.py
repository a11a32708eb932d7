"""Wrappers of optimizers, and their constructors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from bootmae_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS
from bootmae_mm.registry import OPTIM_WRAPPERS as BOOTMAE_OPTIM_WRAPPERS
from bootmae_mm.values import number


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

    Raises:
        ValueError: On an unknown option, or if nothing is to be trained.
    """

    options: tuple[str, ...] = ('no_decay',)

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        given = dict(paramwise_cfg or {})
        unknown = sorted(set(given) - set(self.options))
        if unknown:
            raise ValueError(f'unknown option {unknown} in paramwise_cfg; there is {", ".join(self.options)}')
        self.paramwise_cfg = given
        no_decay = given.get('no_decay', ('pos_embed', 'cls_token'))
        if not isinstance(no_decay, Sequence) or isinstance(no_decay, str):
            raise ValueError(f'paramwise_cfg.no_decay must be a list of names, but is {no_decay!r}')
        self.no_decay = tuple(no_decay)
        self.optim_wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.optim_wrapper_cfg.pop('optimizer'))
        self._check_numbers()

    def _check_numbers(self) -> None:
        """Those of the optimizer; some have more betas than two, or more than one eps."""
        for key in ('lr', 'weight_decay', 'eps'):
            if key in self.optimizer_cfg:
                values = self.optimizer_cfg[key]
                for value in values if key == 'eps' and isinstance(values, (list, tuple)) else [values]:
                    number(value, f'optimizer.{key}', least=0)
        betas = self.optimizer_cfg.get('betas', (0.0, 0.0))
        two = self.optimizer_cfg.get('type') in ('Adam', 'AdamW')
        if not isinstance(betas, (list, tuple)) or (two and len(betas) != 2):
            raise ValueError(f'optimizer.betas must be {"two " if two else ""}numbers, but is {betas!r}')
        for beta in betas:
            number(beta, 'optimizer.betas', least=0, below=1)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies to a parameter."""
        return not (parameter.dim() <= 1 or name.endswith('.bias') or name.rsplit('.', 1)[-1] in self.no_decay)

    def lr_scale(self, model: nn.Module, name: str) -> float:
        """Factor of the learning rate of a parameter."""
        return 1.0

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the wrapper for the trainable parameters of ``model``."""
        if is_model_wrapper(model):
            model = model.module
        groups: dict[tuple[float, bool], list] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                key = self.lr_scale(model, name), self.decays(name, parameter)
                groups.setdefault(key, []).append(parameter)
        if not groups:
            raise ValueError('nothing to train: every parameter of the model is frozen')
        params = []
        for (scale, decays), parameters in sorted(groups.items(), key=lambda item: (item[0][0], not item[0][1])):
            group: dict[str, Any] = dict(params=parameters)
            if scale != 1.0:
                group['lr'] = scale * self.optimizer_cfg['lr']
            if not decays:
                group['weight_decay'] = 0.0
            params.append(group)
            print_log(
                f'{len(parameters)} parameters {"with" if decays else "without"} weight decay, lr x {scale:.4g}',
                logger='current',
            )
        optimizer = OPTIMIZERS.build(self.optimizer_cfg, default_args=dict(params=params))
        wrapper = {'type': 'OptimWrapper', **self.optim_wrapper_cfg}
        return OPTIM_WRAPPERS.build(wrapper, default_args=dict(optimizer=optimizer))


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(GroupedOptimWrapperConstructor):
    """Learning rates that fall from the head to the patch embedding: lr * decay ** (depth_max - depth).

    Depth is 0 for the embedding, i + 1 for block i, and depth_max = number of blocks + 1 for all after the blocks:
    final norm, neck, heads. For classifiers, ``EncoderDecoder``, ``MaskRCNN`` and any other model with
    ``.backbone.get_layer_depth``; a bare backbone too. Source: BEiT (arXiv 2106.08254).

    Args:
        optim_wrapper_cfg: Config of the wrapper, with ``optimizer``.
        paramwise_cfg: ``layer_decay_rate`` (needed), in (0, 1]; ``no_decay`` as in the base class.

    Raises:
        ValueError: On an unknown option, a rate outside (0, 1], or a model whose backbone has no depths.
    """

    options = ('layer_decay_rate', 'no_decay')

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(self.rate, (int, float)) or not 0 < self.rate <= 1:
            raise ValueError(f'layer_decay_rate in paramwise_cfg must be in (0, 1], but is {self.rate!r}')

    def lr_scale(self, model: nn.Module, name: str) -> float:
        """Factor of the learning rate of a parameter, from its depth."""
        backbone, prefix = (model.backbone, 'backbone.') if hasattr(model, 'backbone') else (model, '')
        if not hasattr(backbone, 'get_layer_depth'):
            raise ValueError(f'{type(backbone).__name__} has no get_layer_depth, which layer decay needs')
        depth, depths = backbone.get_layer_depth(name, prefix)
        return float(self.rate ** (depths - 1 - depth))
