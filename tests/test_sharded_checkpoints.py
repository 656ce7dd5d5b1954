"""Checkpoints of a network that FSDP2 shards over two processes on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training_runs import assert_same, run_processes
from training.ema import Ema
from training.sharding import load_network

# Six steps, a checkpoint of which is restored into new shards; both then go on for three more.
STEPS = """
import sys
from copy import deepcopy
from pathlib import Path
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from tests.test_sharded_checkpoints import network, optimizer_of, three_steps
from tests.training_runs import recipe_of
from training.checkpoints import RunState, restore, save_checkpoint
from training.ema import Ema
from training.processes import processes
from training.sharding import network_state, optimizer_state

torch.set_num_threads(1)
folder = Path(sys.argv[1])
recipe = recipe_of("classifier", folder, folder)

def sharded(seed):
    module = network(seed)
    ema = Ema(module, 0.9)
    mesh = init_device_mesh("cpu", (2,))
    for part in (*module, module):
        fully_shard(part, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
    assert module[0].weight.to_local().shape[0] == 8  # of 16
    return RunState({"network": module}, {"network": optimizer_of(module)}, ema)

def advance(state):
    three_steps(state.networks["network"], state.optimizers["network"], state.ema)
    state.step += 3

def content(state):
    module = state.networks["network"]
    found = {
        "network": network_state(module),
        # gathered by the first process alone, which writes it
        "moments": optimizer_state(module, state.optimizers["network"]).get("state", {}),
        "ema": dict(state.ema.average.state_dict()),
        "position": state.position,
    }
    return deepcopy(found)  # states share the memory of what they are of

with processes(recipe.training) as accelerator:
    first, second = sharded(0), sharded(1)
    advance(first)
    advance(first)
    rank = accelerator.process_index
    first.position = {f"part {rank}": [rank]}
    if rank == 0:
        recipe.folder.mkdir()
    accelerator.wait_for_everyone()
    save_checkpoint(recipe, first, accelerator)
    found = {"saved": content(first)}
    restore(recipe, second, recipe.folder / "checkpoint-00000006.pt", accelerator)
    assert (second.step, second.ema.updates) == (6, 6)
    found["restored"] = content(second)
    advance(first)
    advance(second)
    found["went on"], found["continued"] = content(first), content(second)
    torch.save(found, folder / f"rank-{rank}.pt")
"""


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 5))


def optimizer_of(module: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)


def three_steps(module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema[Any]) -> None:
    """On the same inputs in every process, so that the mean gradient is that of one alone."""
    for step in range(3):
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        module(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(module)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sharded")
    run_processes(2, STEPS, path, str(path))
    return path


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each of the two processes found."""
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def stored(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "run" / "checkpoint-00000006.pt", weights_only=True)
    return content


def test_a_checkpoint_holds_the_whole_of_all_processes(
    stored: dict[str, Any], ranks: list[dict[str, Any]]
) -> None:
    assert stored["position"] == {"part 0": [0], "part 1": [1]}
    assert_same(stored["optimizers"]["network"]["state"], ranks[0]["saved"]["moments"])
    for found in ranks:
        assert_same(stored["networks"]["network"], found["saved"]["network"])
        assert_same(dict(stored["ema"]), found["saved"]["ema"])


def test_shards_restored_from_it_go_on_as_those_that_were_saved(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        for name in ("network", "moments", "ema"):
            assert_same(found["restored"][name], found["saved"][name])
            assert_same(found["continued"][name], found["went on"][name])
        assert found["restored"]["position"] == {"part 0": [0], "part 1": [1]}
        assert not torch.equal(found["went on"]["network"]["0.weight"], found["saved"]["network"]["0.weight"])


def test_it_is_the_checkpoint_of_one_process_and_loads_there(stored: dict[str, Any]) -> None:
    alone, loaded = network(0), network(1)
    ema, optimizer = Ema(alone, 0.9), optimizer_of(alone)
    three_steps(alone, optimizer, ema)
    three_steps(alone, optimizer, ema)
    load_network(loaded, stored["networks"]["network"])
    moments = stored["optimizers"]["network"]["state"]
    for index, (name, weight) in enumerate(alone.named_parameters()):
        assert torch.allclose(loaded.state_dict()[name], weight, atol=1e-6), name
        assert torch.allclose(stored["ema"][name], ema.average.state_dict()[name], atol=1e-6), name
        own = optimizer.state_dict()["state"][index]
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.allclose(moments[name][key], own[key], atol=1e-6), (name, key)
