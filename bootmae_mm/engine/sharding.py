"""Parameters, gradients and optimizer states divided among processes (FSDP2), for models that do not fit otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from bootmae_mm.registry import MODEL_WRAPPERS


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a distributed wrapper."""
    return model.module if is_model_wrapper(model) else model


@MODEL_WRAPPERS.register_module()
class FullyShardedDataParallel:
    """torch's ``fully_shard`` for ``model_wrapper_cfg``: every process keeps its share of each block.

    The result is the model itself, its parameters ``DTensor``. It computes what ``MMDistributedDataParallel`` does, up
    to rounding; the momentum encoder is divided as the student is. Checkpoints of :class:`CheckpointHook` are those of
    a run that is not sharded, and either kind of run goes on from them.

    Weights are initialised here, before they are divided: every process holds the whole model once, at the start.
    Parameters are always given back after the forward pass: the teacher has no backward pass that would do so, and
    would otherwise go on with those of the step before.

    Args:
        module: The model.
    """

    def __new__(cls, module: nn.Module) -> nn.Module:
        # Here, so that the tools' --help need not wait for mmpretrain.
        from bootmae_mm.models.block import EncoderBlock
        from bootmae_mm.models.neck import DecoderBlock

        if hasattr(module, 'init_weights'):
            module.init_weights()
        for value in module.state_dict().values():
            torch.distributed.broadcast(value, 0)
        for block in list(module.modules()):
            if isinstance(block, (EncoderBlock, DecoderBlock)):
                fully_shard(block, reshard_after_forward=True)
        sharded = fully_shard(module, reshard_after_forward=True)
        here = sum(parameter.to_local().numel() for parameter in sharded.parameters())
        everywhere = sum(parameter.numel() for parameter in sharded.parameters())
        print_log(f'{here:,} of {everywhere:,} weights, teacher included, are on this process', logger='current')
        return sharded


@contextmanager
def gathered_parameters(model: nn.Module) -> Iterator[None]:
    """Parameters outside of blocks as whole tensors, for calls that do not go through ``model(...)``.

    For a model that is not sharded nothing happens; with one that is, all processes must do the same.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters of a model are divided among processes."""
    return isinstance(model, FSDPModule)


def whole(value: Any) -> Any:  # noqa: ANN401
    """The same structure of dicts and lists with every divided tensor gathered, on the CPU; all processes must call."""
    if isinstance(value, DTensor):
        return value.full_tensor().detach().cpu()
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return type(value)((key, whole(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(whole(item) for item in value)
    return value


def gathered_states(runner: Runner) -> dict:
    """``state_dict`` and ``optimizer`` of a checkpoint of a sharded run; all processes must call."""
    return dict(
        state_dict=whole(unwrapped(runner.model).state_dict()), optimizer=whole(runner.optim_wrapper.state_dict())
    )


def divide_states(runner: Runner, checkpoint: dict) -> None:
    """Divide what a checkpoint holds as the parameters of a sharded run are, in place; all processes must call."""
    model = unwrapped(runner.model)
    own = model.state_dict()
    state = checkpoint.get('state_dict', checkpoint)
    for name, value in state.items():
        if isinstance(own.get(name), DTensor) and own[name].shape == value.shape:
            state[name] = _like(value, own[name])
    optimizer = checkpoint.get('optimizer')
    if optimizer is None:
        return
    parameters = [parameter for group in runner.optim_wrapper.optimizer.param_groups for parameter in group['params']]
    for index, values in optimizer['state'].items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameters[index].shape:
                values[name] = _like(value, parameters[index])


def _like(value: Tensor, divided: DTensor) -> DTensor:
    return distribute_tensor(value.to(divided.device), divided.device_mesh, divided.placements)
