"""CUDA graphs: what is captured and copied, on fakes of CUDA's calls, and the numbers on a real GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.bundle import Bundle
from models.drawing import Drawing, advance, step_batch
from models.published_way import PublishedWay
from models.runtime.cuda_graphs import WARM_UPS, CudaGraphs
from models.runtime.torch_runtime import TorchRuntime
from models.sampling_config import SamplingConfig

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


class Network:
    """x + y, written into a buffer for each batch size, as a replay of a graph writes it."""

    def __init__(self, events: list[str] | None = None) -> None:
        self.calls: list[int] = []
        self.events = [] if events is None else events
        self.outputs: dict[int, Tensor] = {}

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls.append(len(x))
        self.events.append("call")
        self.outputs[len(x)] = x + y
        return self.outputs[len(x)]


class FakeGraph:
    """Keeps what the network was captured with, and computes it again when replayed."""

    made: list[FakeGraph]

    def __init__(self) -> None:
        self.made.append(self)
        self.replays = 0
        self.captured: tuple[Tensor, Tensor, Tensor] | None = None

    def pool(self) -> tuple[int, int]:
        return (0, id(self.made[0]))

    def replay(self) -> None:
        assert self.captured is not None
        x, y, output = self.captured
        output.copy_(x + y)
        self.replays += 1


@pytest.fixture
def events() -> list[str]:
    """What the fakes were asked for, in order."""
    return []


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch, events: list[str]) -> list[object]:
    """Fakes of the calls that CudaGraphs makes; the memory pools of the captures, in order."""
    seen: list[object] = []
    FakeGraph.made = []

    class FakeStream:
        def __init__(self, device: object = None, name: str = "own") -> None:
            self.name = name

        def wait_stream(self, other: FakeStream) -> None:
            events.append(f"{self.name} waits for {other.name}")

    usual = FakeStream(name="usual")

    @contextmanager
    def capture(
        graph: FakeGraph, *, pool: object, stream: FakeStream, capture_error_mode: str
    ) -> Iterator[None]:
        seen.append(pool)
        assert capture_error_mode == "thread_local"
        events.append(f"capture on {stream.name}")
        yield
        events.append("captured")

    @contextmanager
    def entered(stream: FakeStream) -> Iterator[None]:
        events.append(f"enter {stream.name}")
        yield
        events.append(f"leave {stream.name}")

    for name, fake in {
        "Stream": FakeStream,
        "CUDAGraph": FakeGraph,
        "graph": capture,
        "device": lambda device: nullcontext(),
        "stream": entered,
        "current_stream": lambda: usual,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return seen


def graphs_of(network: Network) -> CudaGraphs:
    graphs = CudaGraphs(network, torch.device("cpu"))
    capture = graphs._capture

    def capture_and_remember(inputs: tuple[Tensor, ...]) -> Any:
        captured = capture(inputs)
        x, y = captured.inputs
        FakeGraph.made[-1].captured = (x, y, captured.output)
        return captured

    graphs._capture = capture_and_remember  # type: ignore[method-assign]
    return graphs


def test_a_batch_size_is_captured_once_and_replayed_ever_after(pools: list[object]) -> None:
    network = Network()
    graphs = graphs_of(network)
    for rows in (2, 4, 2, 2, 4):
        x, y = torch.rand(rows, 3), torch.rand(rows, 3)
        assert torch.equal(graphs(x, y), x + y)
    assert network.calls == [2] * (WARM_UPS + 1) + [4] * (WARM_UPS + 1)
    assert [graph.replays for graph in FakeGraph.made] == [3, 2]


def test_a_capture_waits_for_what_came_before_and_its_warm_ups_for_nobody_else(
    pools: list[object], events: list[str]
) -> None:
    graphs_of(Network(events))(torch.rand(2, 3), torch.rand(2, 3))
    assert events == [
        "own waits for usual",
        "enter own",
        *["call"] * WARM_UPS,
        "leave own",
        "usual waits for own",
        "capture on own",
        "call",
        "captured",
    ]


def test_all_graphs_share_the_memory_of_the_first(pools: list[object]) -> None:
    graphs = graphs_of(Network())
    for rows in (1, 2, 3):
        graphs(torch.rand(rows, 3), torch.rand(rows, 3))
    assert pools == [None, FakeGraph.made[0].pool(), FakeGraph.made[0].pool()]


def test_a_result_outlives_the_next_replay_and_inputs_are_left_alone(pools: list[object]) -> None:
    graphs = graphs_of(Network())
    x, y = torch.rand(2, 3), torch.rand(2, 3)
    first, kept = graphs(x, y), (x.clone(), y.clone())
    graphs(torch.zeros(2, 3), torch.zeros(2, 3))
    assert torch.equal(first, x + y)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


@pytest.fixture(scope="module")
def on_gpu(tiny_bundle: Bundle) -> TorchRuntime:
    return TorchRuntime(tiny_bundle, device="cuda", precision="fp32")


@pytest.mark.gpu
@needs_gpu
def test_a_graph_computes_what_the_network_does_in_any_order_of_batch_sizes(on_gpu: TorchRuntime) -> None:
    assert on_gpu.generator is not None
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        for rows in (1, 4, 2, 4, 1, 8, 2):
            tokens = torch.from_numpy(rng.integers(0, 9, (rows, 64, 2))).cuda()
            labels = torch.from_numpy(rng.integers(0, 6, rows)).cuda()
            wanted = on_gpu.generator(tokens, labels)
            assert torch.allclose(on_gpu._network(tokens, labels), wanted, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 0.0001), ("fp16", 0.01)])
def test_steps_on_a_gpu_are_those_of_the_cpu(tiny_bundle: Bundle, precision: str, allowed: float) -> None:
    cpu = TorchRuntime(tiny_bundle, device="cpu")
    gpu = TorchRuntime(tiny_bundle, device="cuda", precision=precision)
    config = tiny_bundle.manifest.generator
    assert config is not None
    sampling = SamplingConfig(steps=8, guidance_scale=3.0, noise_temperature=4.0)
    drawings = [Drawing.start(config, sampling, seed % 5, seed) for seed in range(24)]
    while not drawings[0].finished:
        batch = step_batch(drawings)
        assert (gpu.step(batch).tokens != cpu.step(batch).tokens).mean() <= allowed
        advance(cpu, drawings)


@pytest.mark.gpu
@needs_gpu
def test_in_strict_mode_a_gpu_gives_a_row_the_same_bits_in_any_company(tiny_bundle: Bundle) -> None:
    runtime = TorchRuntime(tiny_bundle, device="cuda", strict=True)
    config = tiny_bundle.manifest.generator
    assert config is not None
    sampling = SamplingConfig(steps=8, guidance_scale=3.0)
    batch = step_batch([Drawing.start(config, sampling, seed % 5, seed) for seed in range(11)])
    whole = runtime.step(batch)
    for row in range(11):
        assert np.array_equal(runtime.step(batch.take(np.array([row]))).tokens[0], whole.tokens[row])


@pytest.mark.gpu
@needs_gpu
def test_the_published_way_runs_on_a_gpu(tiny_bundle: Bundle) -> None:
    way = PublishedWay(tiny_bundle, torch.device("cuda"))
    grids = way.draw(SamplingConfig(steps=4, guidance_scale=2.0), [0, 1])
    assert way.decode(grids).shape == (2, 16, 16, 3)
