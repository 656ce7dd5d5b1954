import time
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from models.config import GeneratorConfig
from models.networks import build_generator
from training.throughput import Throughput, count_flops


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def batches(self, seconds: float, count: int) -> Iterator[int]:
        """Numbers that take `seconds` each to come."""
        for number in range(count):
            self.now += seconds
            yield number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_speed_and_data_share_are_those_of_the_clock(clock: Clock) -> None:
    meter = Throughput(pictures=8)
    meter.flops = 1000
    for _ in meter.waiting(clock.batches(0.5, 4)):
        clock.now += 1.5
        meter.step()
    report = meter.report()
    assert report["images_per_s"] == pytest.approx(8 * 4 / 8.0)
    assert report["data_share"] == pytest.approx(0.25)
    assert report["flops_per_s"] == pytest.approx(4 * 1000 / 8.0)


def test_time_aside_is_no_training(clock: Clock) -> None:
    meter = Throughput(pictures=2)
    clock.now += 1
    meter.step()
    clock.now += 9
    meter.leave_out(9)
    assert meter.report()["images_per_s"] == pytest.approx(2)


def test_a_report_starts_afresh(clock: Clock) -> None:
    meter = Throughput(pictures=1)
    for _ in meter.waiting(clock.batches(1, 3)):
        meter.step()
    meter.leave_out(0.5)
    meter.report()
    clock.now += 4
    meter.step()
    assert meter.report() == {"images_per_s": 0.25, "data_share": 0.0}


def test_flops_of_a_linear_layer_are_two_a_weight_and_row_three_times_over() -> None:
    network = nn.Linear(5, 7)
    inputs = torch.zeros(3, 5, requires_grad=True)
    # the product itself, and one for each gradient
    assert count_flops(lambda: network(inputs).sum().backward()) == 3 * 2 * 3 * 5 * 7
    with torch.no_grad():
        assert count_flops(lambda: network(inputs)) == 2 * 3 * 5 * 7


def test_flops_of_a_generator_are_those_of_its_products() -> None:
    config = GeneratorConfig(
        bits=4,
        hidden_dim=16,
        depth=3,
        heads=2,
        mlp_dim=32,
        codebook_splits=2,
        img_size=8,
        input_stride=2,
        nclass=3,
        dropout=0.0,
    )
    network = build_generator(config)
    tokens = torch.zeros(1, 16, 2, dtype=torch.int64)
    length, width = 17, 16  # tokens and class
    layer = 4 * width * width + 2 * width * 32 + 2 * length * width  # projections, MLP, attention
    shared = 3 * layer * length + length * width * width  # and the last layer
    ends = 16 * (4 * width + width * 2 * 4)  # bits in and codes out, of tokens alone
    with torch.no_grad():
        assert count_flops(lambda: network(tokens, tokens.new_zeros(1))) == 2 * (shared + ends)
    trained = count_flops(lambda: network(tokens, tokens.new_zeros(1)).sum().backward())
    assert trained == 3 * 2 * (shared + ends) - 2 * 16 * 4 * width  # bits need no gradient
