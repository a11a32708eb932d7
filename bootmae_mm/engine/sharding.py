"""FSDP2: parameters, gradients and optimizer states sharded across processes."""

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
    """Model inside a distributed wrapper."""
    return model.module if is_model_wrapper(model) else model


@MODEL_WRAPPERS.register_module()
class FullyShardedDataParallel:
    """torch's ``fully_shard`` for ``model_wrapper_cfg``: every process keeps its shard of each block.

    Returns the model itself, with ``DTensor`` parameters. Results equal those of ``MMDistributedDataParallel`` up to
    rounding. The teacher is sharded like the student. Checkpoints of :class:`CheckpointHook` are those of an unsharded
    run, and either kind of run resumes from them.

    Weights are initialized here, before sharding: every process holds the full model once, at the start. Parameters are
    always resharded after the forward pass: the teacher has no backward pass to do so, and would otherwise use the
    parameters of the previous step.

    Args:
        module: Model to shard.
    """

    def __new__(cls, module: nn.Module) -> nn.Module:
        # Imported here, so that --help of the tools does not import mmpretrain.
        from bootmae_mm.models import BLOCKS

        if hasattr(module, 'init_weights'):
            module.init_weights()
        for value in module.state_dict().values():
            torch.distributed.broadcast(value, 0)
        for block in list(module.modules()):
            if isinstance(block, BLOCKS):
                fully_shard(block, reshard_after_forward=True)
        sharded = fully_shard(module, reshard_after_forward=True)
        here = sum(parameter.to_local().numel() for parameter in sharded.parameters())
        everywhere = sum(parameter.numel() for parameter in sharded.parameters())
        print_log(f'{here:,} of {everywhere:,} weights, teacher included, are on this process', logger='current')
        return sharded


@contextmanager
def gathered_parameters(model: nn.Module) -> Iterator[None]:
    """Full parameters outside of blocks, for calls that do not go through ``model(...)``.

    Does nothing for an unsharded model; for a sharded one, all processes must call it.
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
    """Whether the parameters of a model are sharded."""
    return isinstance(model, FSDPModule)


def gather(value: Any) -> Any:  # noqa: ANN401
    """Gather every sharded tensor in nested dicts and lists, on the CPU; all processes must call."""
    if isinstance(value, DTensor):
        return value.full_tensor().detach().cpu()
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return type(value)((key, gather(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(gather(item) for item in value)
    return value


def gathered_states(runner: Runner) -> dict:
    """``state_dict`` and ``optimizer`` of a checkpoint of a sharded run; all processes must call."""
    return dict(
        state_dict=gather(unwrapped(runner.model).state_dict()), optimizer=gather(runner.optim_wrapper.state_dict())
    )


def shard_states(runner: Runner, checkpoint: dict) -> None:
    """Shard the tensors of a checkpoint like the parameters of a sharded run, in place; all processes must call."""
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


def _like(value: Tensor, sharded: DTensor) -> DTensor:
    return distribute_tensor(value.to(sharded.device), sharded.device_mesh, sharded.placements)
