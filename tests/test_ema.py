from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training.ema import Ema, ema_decay

GOLDEN = Path(__file__).parent / "golden"


def test_the_decay_follows_the_reference() -> None:
    golden = np.load(GOLDEN / "schedulers.npz")
    decays = [ema_decay(int(step), 0.999) for step in golden["ema_step"]]
    assert decays == pytest.approx(golden["ema_decay"].tolist(), rel=1e-6)


def test_the_average_is_the_recursive_mean_of_all_weights() -> None:
    network = nn.Linear(3, 2)
    ema = Ema(network, 0.7)
    expected = network.weight.detach().double().numpy().copy()
    rng = np.random.default_rng(0)
    for update in range(1, 40):
        with torch.no_grad():
            network.weight.add_(torch.from_numpy(rng.normal(size=(2, 3)).astype(np.float32)))
        ema.update(network)
        decay = 0.0 if update == 1 else min(update / (9 + update), 0.7)
        expected = decay * expected + (1 - decay) * network.weight.detach().double().numpy()
    assert ema.updates == 39
    assert np.allclose(ema.average.weight.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_first_update_takes_the_weights_as_they_are() -> None:
    network = nn.Linear(3, 2)
    ema = Ema(network, 0.999)
    with torch.no_grad():
        network.weight.mul_(3)
    ema.update(network)
    assert torch.equal(ema.average.weight, network.weight)


def test_buffers_are_copied() -> None:
    network = nn.BatchNorm1d(2)
    ema = Ema(network, 0.999)
    network(torch.randn(8, 2))
    ema.update(network)
    assert ema.average.running_mean is not None
    assert network.running_mean is not None
    assert torch.equal(ema.average.running_mean, network.running_mean)


def test_the_average_is_frozen_in_eval_mode_and_shares_no_memory() -> None:
    network = nn.Linear(3, 2).train()
    ema = Ema(network, 0.999)
    assert not ema.average.training
    assert not any(parameter.requires_grad for parameter in ema.average.parameters())
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert ema.average.weight.data_ptr() != network.weight.data_ptr()
