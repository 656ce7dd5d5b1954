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

from training.ema import whole


def bare(module: nn.Module) -> nn.Module:
    """`module` without the wrappers of data parallelism and compilation, with the keys of its own class."""
    while isinstance(module, nn.parallel.DistributedDataParallel):
        module = module.module
    inner = getattr(module, "_orig_mod", module)
    assert isinstance(inner, nn.Module)
    return inner if inner is module else bare(inner)


def _sharded(module: nn.Module) -> bool:
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
    if not _sharded(module):
        return optimizer.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_optimizer_state_dict(bare(module), _plain(optimizer), options=options))


def load_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Fill `optimizer` with what `optimizer_state` gave."""
    if not _sharded(module):
        optimizer.load_state_dict(state)
        return
    set_optimizer_state_dict(
        bare(module), _plain(optimizer), state, options=StateDictOptions(full_state_dict=True)
    )


def _plain(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that accelerate wraps."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, torch.optim.Optimizer)
    return inner
