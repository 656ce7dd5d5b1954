"""Two processes that share one network's weights, and the same network in one piece."""

from pathlib import Path

from tests.training_runs import run_processes

# Seven rows make the shards unequal.
SHARDED = """
from copy import deepcopy
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from training.ema import Ema
from training.sharding import is_sharded, load_network, load_optimizer, network_state, optimizer_state

torch.set_num_threads(1)
torch.manual_seed(0)
dist.init_process_group("gloo")
plain = nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
sharded = fully_shard(deepcopy(plain), mesh=init_device_mesh("cpu", (2,)))
assert is_sharded(sharded) and not is_sharded(plain)

networks = (plain, sharded)
averages = [Ema(plain, 0.9), Ema(deepcopy(plain), 0.9)]
optimizers = [torch.optim.AdamW(network.parameters()) for network in networks]
for step in range(3):
    images = torch.randn(8, 4)
    for network, average, optimizer in zip(networks, averages, optimizers):
        network(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(network)

def same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert torch.allclose(left[key].float(), right[key].float(), atol=1e-6), key

same(plain.state_dict(), network_state(sharded))
same(averages[0].average.state_dict(), averages[1].average.state_dict())

state, stored = deepcopy(network_state(sharded)), [optimizer_state(sharded, optimizers[1])]
dist.broadcast_object_list(stored)  # as all read what the main process wrote
moments = stored[0]
with torch.no_grad():
    for parameter in sharded.parameters():
        parameter.zero_()
fresh = torch.optim.AdamW(sharded.parameters())
load_network(sharded, state)
load_optimizer(sharded, fresh, deepcopy(moments))
same(network_state(sharded), state)
restored = optimizer_state(sharded, fresh)
if dist.get_rank() == 0:
    for key, values in moments["state"].items():
        same(values, restored["state"][key])
dist.destroy_process_group()
"""


def test_averages_and_states_of_shards_are_those_of_the_whole(tmp_path: Path) -> None:
    run_processes(2, SHARDED, tmp_path)
