"""Wrappers of optimizers, and their constructors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import pydantic
import torch
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from pydantic import BeforeValidator, Field
from torch import nn

from bootmae_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS
from bootmae_mm.registry import OPTIM_WRAPPERS as BOOTMAE_OPTIM_WRAPPERS
from bootmae_mm.validation import STRICT, NonNegative, Options, PositiveShare, Rate, parse, require, validated


@BOOTMAE_OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Mixed precision without loss scaling, which bfloat16 does not need.

    mmengine's ``AmpOptimWrapper`` always has a loss scaler, which waits for the device in every step, and does not run
    on a CPU. Use it for float16.

    Args:
        dtype: ``'bfloat16'``, or ``'float32'`` for no mixed precision.
        **kwargs: Arguments of ``OptimWrapper``.
    """

    @validated
    def __init__(self, dtype: Literal['bfloat16', 'float32'] = 'bfloat16', **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dtype = getattr(torch, dtype)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, and mmengine's gradient accumulation."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            yield


class ParamwiseOptions(Options):
    """Options of :class:`GroupedOptimWrapperConstructor`."""

    no_decay: Sequence[str] = ('pos_embed', 'cls_token')


class LayerDecayOptions(ParamwiseOptions):
    """Options of :class:`LayerDecayOptimWrapperConstructor`."""

    layer_decay_rate: PositiveShare


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


class OptimizerNumbers(pydantic.BaseModel):
    """Numbers of an optimizer; some optimizers have more than two betas, or more than one eps."""

    model_config = pydantic.ConfigDict({**STRICT, 'extra': 'ignore'})

    lr: NonNegative = 0
    weight_decay: NonNegative = 0
    eps: Annotated[list[NonNegative], BeforeValidator(_as_list)] = []
    betas: Annotated[list[Rate], Field(strict=False)] = [0.0, 0.0]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor:
    """Two groups of parameters: with and without weight decay.

    Without: 1-D parameters, ``*.bias``, and parameters whose last name is in ``no_decay`` (as in ``optim_factory.py``
    of the authors, where mask tokens decay). mmengine's default constructor makes one group, and one log line, per
    parameter, which slows down fused and foreach optimizers.

    Args:
        optim_wrapper_cfg: Config of the wrapper, with ``optimizer``.
        paramwise_cfg: :class:`ParamwiseOptions`; ``no_decay`` are names of parameters without weight decay.

    Raises:
        ConfigError: For an unknown option, or if there is nothing to train.
    """

    options: type[ParamwiseOptions] = ParamwiseOptions

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.paramwise: Any = parse(self.options, dict(paramwise_cfg or {}), 'paramwise_cfg')
        self.optim_wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.optim_wrapper_cfg.pop('optimizer'))
        numbers = parse(OptimizerNumbers, self.optimizer_cfg, 'optimizer')
        any_number = self.optimizer_cfg.get('type') not in ('Adam', 'AdamW')
        require(any_number or len(numbers.betas) == 2, f'optimizer.betas must be two numbers, but is {numbers.betas}')

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies to a parameter."""
        last = name.rsplit('.', 1)[-1]
        return not (parameter.dim() <= 1 or last == 'bias' or last in self.paramwise.no_decay)

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
        require(groups, 'nothing to train: every parameter of the model is frozen')
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
    """Learning rates that decrease from the head to the patch embedding: lr * rate ** (max_depth - depth).

    The depth is 0 for the embedding, i + 1 for block i, and max_depth = number of blocks + 1 for everything after the
    blocks: final norm, neck, heads. For classifiers, ``EncoderDecoder``, ``MaskRCNN``, any other model with
    ``.backbone.get_layer_depth``, and a bare backbone. Source: BEiT (arXiv 2106.08254).

    Args:
        optim_wrapper_cfg: Config of the wrapper, with ``optimizer``.
        paramwise_cfg: :class:`LayerDecayOptions`: ``layer_decay_rate``, in (0, 1], and ``no_decay``.

    Raises:
        ConfigError: For an unknown option, or a model whose backbone has no layer depths.
    """

    options = LayerDecayOptions

    def lr_scale(self, model: nn.Module, name: str) -> float:
        """Factor of the learning rate of a parameter, from its depth."""
        backbone, prefix = (model.backbone, 'backbone.') if hasattr(model, 'backbone') else (model, '')
        name_of_type = type(backbone).__name__
        require(hasattr(backbone, 'get_layer_depth'), f'{name_of_type} has no get_layer_depth, which layer decay needs')
        depth, depths = backbone.get_layer_depth(name, prefix)
        return float(self.paramwise.layer_decay_rate ** (depths - 1 - depth))
