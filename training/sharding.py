"""Whole states of modules and optimizers, whether FSDP shards them over the processes or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """`tensor` itself, or all of it where FSDP leaves each process a shard."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def bare(module: nn.Module) -> nn.Module:
    """`module` without the wrappers of data parallelism and compilation, with the keys of its own class."""
    while isinstance(module, nn.parallel.DistributedDataParallel):
        module = module.module
    inner = getattr(module, "_orig_mod", module)
    assert isinstance(inner, nn.Module)
    return inner if inner is module else bare(inner)


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP leaves each process a part of the weights of `module`."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def network_state(module: nn.Module) -> dict[str, Tensor]:
    """All weights of `module`, whole, under the keys of its own class; processes call this together."""
    return {key: whole(value) for key, value in bare(module).state_dict().items()}


def load_network(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill `module` with what `network_state` gave; a shard takes its own part."""
    own = bare(module).state_dict()
    bare(module).load_state_dict(
        {
            key: distribute_tensor(value.to(own[key].device), own[key].device_mesh, own[key].placements)
            if isinstance(own[key], DTensor)
            else value
            for key, value in state.items()
        }
    )


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State of the `optimizer` of `module`, whole; processes call this together."""
    if not is_sharded(module):
        return optimizer.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_optimizer_state_dict(bare(module), _plain(optimizer), options=options))


def load_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Fill `optimizer` with what `optimizer_state` gave; ValueError for moments of another shape."""
    if is_sharded(module):
        set_optimizer_state_dict(
            bare(module), _plain(optimizer), state, options=StateDictOptions(full_state_dict=True)
        )
    else:
        optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.dim() and value.shape != parameter.shape:
                raise ValueError(f"{key} is {tuple(value.shape)} for weights of {tuple(parameter.shape)}")


def _plain(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that accelerate wraps."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, torch.optim.Optimizer)
    return inner
