"""A revision that takes over computes where the former one did, or waits: memory may not suffice for both."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.bundle import MANIFEST, Bundle, open_bundle
from models.errors import RuntimeUnavailable
from models.runtime import loading
from models.runtime.loading import Wish
from models.runtime.noop_runtime import NoopRuntime
from service.settings import Settings
from service.telemetry import WorkerMetrics
from service.worker import succession
from service.worker.succession import Succession
from tests.gateway_harness import until

pytest_plugins = ["tests.gateway_fixtures"]


class OnGpu(NoopRuntime):
    """Stands for any runtime on a GPU."""

    name = "torch"
    device_name = "cuda:0"
    buckets: tuple[int, ...] = (1, 2, 4)


class Fewer(OnGpu):
    buckets = (1, 2)


class Served(NoopRuntime):
    """Stands for the models of a server."""

    name = "triton"
    device_name = "triton.example"


def no_memory(bundle: Bundle) -> NoopRuntime:
    raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")


def no_models(bundle: Bundle) -> NoopRuntime:
    raise RuntimeUnavailable("it serves another revision")


class Machine:
    """What there is on the GPU and the server; on the CPU there is always a runtime."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.gpu: Callable[[Bundle], NoopRuntime] = OnGpu
        self.server: Callable[[Bundle], NoopRuntime] = Served
        self.folder = folder
        monkeypatch.setattr("models.runtime.devices.cuda_gpus", lambda: 1)
        monkeypatch.setattr(succession, "LOOK_S", 0.05)
        for name in ("tensorrt", "torch", "onnx"):
            monkeypatch.setitem(loading._LOADERS, name, self._local)
        monkeypatch.setitem(loading._LOADERS, "triton", self._served)
        self.wishes: list[Wish] = []

    def _served(self, bundle: Bundle, wish: Wish) -> NoopRuntime:
        self.wishes.append(wish)
        return self.server(bundle)

    def _local(self, bundle: Bundle, wish: Wish) -> NoopRuntime:
        return self.gpu(bundle) if wish.device.startswith("cuda") else NoopRuntime(bundle)

    def publish(self) -> str:
        """Put another revision into the folder."""
        file = self.folder / MANIFEST
        file.write_text(file.read_text().replace("Apache-2.0", "MIT"))
        return open_bundle(str(self.folder)).revision


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, plain_bundle: Bundle, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, shutil.copytree(plain_bundle.path, tmp_path / "bundle"))


@pytest.fixture
def start(empty_redis: str, machine: Machine) -> Iterator[Callable[..., Succession]]:
    """Start a worker process in a thread."""
    running: list[tuple[Succession, threading.Thread]] = []

    def one(**settings: Any) -> Succession:
        worker = Succession(
            Settings(redis_url=empty_redis, bundle=str(machine.folder), lease_s=1, **settings),
            WorkerMetrics(),
            None,
        )
        thread = threading.Thread(target=worker.run)
        thread.start()
        running.append((worker, thread))
        until(lambda: worker._reigns[0].entered)
        return worker

    yield one
    for worker, thread in running:
        worker.stop()
        thread.join(20)
        assert not thread.is_alive()


def current(worker: Succession) -> tuple[str, str]:
    """Revision and device of the newest."""
    newest = worker._reigns[-1]
    return newest.bundle.revision, newest.worker.info.device


@pytest.mark.parametrize(
    ("makeshift", "reason"),
    [(no_memory, "the memory of cuda:0 does not suffice"), (Fewer, "memory for 2 rows at a time, not for 4")],
)
def test_a_revision_that_the_gpu_has_no_room_for_waits_and_never_goes_to_the_cpu(
    machine: Machine,
    start: Callable[..., Succession],
    caplog: pytest.LogCaptureFixture,
    makeshift: Callable[[Bundle], NoopRuntime],
    reason: str,
) -> None:
    worker = start(runtime="auto")
    first, device = current(worker)
    assert device == "cuda:0"
    machine.gpu = makeshift
    second = machine.publish()
    until(lambda: "cannot be served" in caplog.text or current(worker)[0] == second)
    assert current(worker) == (first, "cuda:0")
    assert reason in caplog.text
    # Metrics name what is loaded, and what was refused is not.
    assert [labels[0] for labels in worker._metrics.model_info._metrics] == [f"tiny@{first}"]
    machine.gpu = OnGpu
    worker.look_now()
    until(lambda: current(worker) == (second, "cuda:0"))


def test_a_revision_that_the_server_lacks_waits_for_it(
    machine: Machine, start: Callable[..., Succession], caplog: pytest.LogCaptureFixture
) -> None:
    worker = start(runtime="auto", triton_url="grpc://triton.example")
    first, device = current(worker)
    assert device == "triton.example"
    machine.server = no_models
    second = machine.publish()
    until(lambda: "cannot be served" in caplog.text or current(worker)[0] == second)
    assert current(worker) == (first, "triton.example")
    machine.server = Served
    worker.look_now()
    until(lambda: current(worker) == (second, "triton.example"))


def test_the_patience_with_a_server_is_a_setting_and_no_hang_of_the_worker(
    machine: Machine, start: Callable[..., Succession]
) -> None:
    settings = {"triton_url": "grpc://triton.example", "triton_timeout_s": "7", "triton_deadline_s": "90"}
    worker = start(runtime="triton", **settings)
    [wish] = machine.wishes
    assert (wish.triton_timeout_s, wish.triton_deadline_s) == (7.0, 90.0)
    # A step of rows with and without guidance, their previews, pictures that are ready: four calls in a turn.
    assert worker._reigns[0].worker._stall._floor_s > 4 * (90.0 + 7.0)


def test_a_first_revision_takes_what_there_is_and_warns_of_a_gpu_that_it_does_not_use(
    machine: Machine, start: Callable[..., Succession], caplog: pytest.LogCaptureFixture
) -> None:
    machine.gpu = no_memory
    assert current(start(runtime="auto"))[1] == "cpu"
    warned = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert any(one.startswith("passed over: torch on cuda:0: ") for one in warned)


def test_a_revision_after_one_on_the_cpu_may_go_to_the_gpu(
    machine: Machine, start: Callable[..., Succession]
) -> None:
    machine.gpu = no_memory
    worker = start(runtime="auto")
    machine.gpu = OnGpu
    second = machine.publish()
    until(lambda: current(worker) == (second, "cuda:0"))
