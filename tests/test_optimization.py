import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.training_runs import recipe_of
from training.config import OptimizerConfig
from training.lr_schedule import cosine_with_minimum
from training.optimization import learning_rate, make_optimizer, pictures_per_step, update
from training.processes import processes

CPU = torch.device("cpu")


@pytest.fixture
def accelerator(tmp_path: Path) -> Iterator[Accelerator]:
    with processes(recipe_of("classifier", tmp_path, tmp_path).training) as accelerator:
        yield accelerator


def test_a_step_is_that_of_adamw_written_out(accelerator: Accelerator) -> None:
    config = OptimizerConfig(beta1=0.8, beta2=0.9, weight_decay=0.1, epsilon=1e-3)
    weight = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    network = nn.Module()
    network.register_parameter("weight", weight)
    optimizer = make_optimizer(network.parameters(), config, CPU)
    value, first, second = [2.0, -1.0], [0.0, 0.0], [0.0, 0.0]
    for step, (rate, gradient) in enumerate([(0.1, (0.3, -0.4)), (0.05, (3.0, 4.0))], 1):
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        norm = update(accelerator, network, optimizer, rate, 1.0)
        length = math.hypot(*gradient)
        assert norm.item() == pytest.approx(length)
        for i, raw in enumerate(gradient):
            g = raw / max(length, 1.0)  # clipped
            first[i] = 0.8 * first[i] + 0.2 * g
            second[i] = 0.9 * second[i] + 0.1 * g * g
            moved = (first[i] / (1 - 0.8**step)) / (math.sqrt(second[i] / (1 - 0.9**step)) + 1e-3)
            value[i] = value[i] * (1 - rate * 0.1) - rate * moved
    assert weight.tolist() == pytest.approx(value, rel=1e-5)


def test_an_update_clears_the_gradients(accelerator: Accelerator) -> None:
    network = nn.Linear(2, 2)
    optimizer = make_optimizer(network.parameters(), OptimizerConfig(), CPU)
    network(torch.ones(1, 2)).sum().backward()
    update(accelerator, network, optimizer, 0.1, 1.0)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_frozen_weights_are_left_out() -> None:
    network = nn.Linear(2, 2)
    network.weight.requires_grad_(False)
    optimizer = make_optimizer(network.parameters(), OptimizerConfig(), CPU)
    assert optimizer.param_groups[0]["params"] == [network.bias]


@pytest.mark.parametrize(("scale_lr", "factor"), [(False, 1), (True, 12)])
def test_the_rate_follows_the_schedule_and_may_scale_with_the_pictures_of_a_step(
    tmp_path: Path, accelerator: Accelerator, scale_lr: bool, factor: int
) -> None:
    changes: dict[str, Any] = {
        "training__per_gpu_batch_size": 4,
        "training__gradient_accumulation_steps": 3,
        "training__max_train_steps": 50,
        "lr_scheduler__params__warmup_steps": 5,
        "optimizer__params__scale_lr": scale_lr,
        "optimizer__params__learning_rate": 2e-3,
    }
    recipe = recipe_of("tokenizer", tmp_path, tmp_path, **changes)
    pictures = pictures_per_step(recipe, accelerator)
    assert pictures == 12
    rates = [learning_rate(recipe, step, pictures) for step in range(50)]
    assert rates == [cosine_with_minimum(step, factor * 2e-3, 5, 50) for step in range(50)]
