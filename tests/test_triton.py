"""Triton for real: a model repository, a server that is killed in mid-load, and the runtime that asks it."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.triton_repository import write_repository
from export.triton_sources import Choice
from models import bits
from models.bundle import Bundle
from models.drawing import Drawing, draw, step_batch
from models.errors import RuntimeLost, RuntimeUnavailable
from models.runtime import triton_memory
from models.runtime.base import CPU_BUCKETS, Integers, Runtime
from models.runtime.torch_runtime import TorchRuntime
from models.runtime.triton_link import Address, Link, TritonTrouble
from models.runtime.triton_memory import Region, remove_orphans
from models.runtime.triton_runtime import TritonRuntime
from models.signature import graph_specs
from service.jobs.consumer import Consumer
from service.jobs.job import NewJob, QueueLimits
from service.jobs.keys import Keys
from service.jobs.payloads import GenerateJob, Pictures, TokenGrids
from service.jobs.store import JobStore
from service.telemetry import WorkerMetrics
from service.worker.isolation import isolate
from service.worker.scheduler import SlotTable
from service.worker.worker import Worker
from tests.gateway_harness import until
from tests.service_fixtures import serving
from tests.triton_fixtures import Triton

SCHEMES = ("grpc", "http")
PYTHON = Choice("python", "fp32")
LIMITS = QueueLimits(lease_s=1.0)


@pytest.fixture(scope="module")
def torch(exported_tiny: Bundle) -> TorchRuntime:
    return TorchRuntime(exported_tiny, device="cpu")


@pytest.fixture(scope="module")
def drawn(exported_tiny: Bundle, torch: TorchRuntime) -> Integers:
    return drawing(torch, exported_tiny, 5)


def drawing(runtime: Runtime, bundle: Bundle, pictures: int, seed: int = 0) -> Integers:
    """Tokens of pictures with guidance."""
    labels = [seed % 5 for seed in range(pictures)]
    return draw(runtime, bundle.manifest, bundle.manifest.sampling, labels, range(seed, seed + pictures))


# -- the runtime ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share_memory", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_triton_computes_what_torch_computes(
    triton: Triton,
    exported_tiny: Bundle,
    torch: TorchRuntime,
    drawn: Integers,
    scheme: str,
    share_memory: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    runtime = TritonRuntime(exported_tiny, triton.urls[scheme], share_memory=share_memory)
    runtime.warm_up()
    images = np.random.default_rng(1).integers(0, 256, (37, 16, 16, 3), dtype=np.uint8)
    grids = runtime.encode(images)
    np.testing.assert_array_equal(grids, torch.encode(images))
    pictures = runtime.decode(grids)
    # A value in the middle of two may be rounded either way.
    np.testing.assert_allclose(pictures.astype(int), torch.decode(grids), atol=1)
    np.testing.assert_array_equal(drawing(runtime, exported_tiny, 5), drawn)
    plain = replace(exported_tiny.manifest.sampling, guidance_scale=0.0)
    arguments = (exported_tiny.manifest, plain, [1, 2], [8, 9])
    np.testing.assert_array_equal(draw(runtime, *arguments), draw(torch, *arguments))
    assert (runtime.name, runtime.precision, runtime.device_name) == ("triton", "fp32", "127.0.0.1")
    assert runtime.buckets == CPU_BUCKETS
    assert ("through shared memory" in caplog.text) is share_memory
    # Whoever gets an answer may write into it.
    pictures[...] = 0
    runtime.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_that_sees_no_shared_memory_of_ours_gets_arrays_over_the_connection(
    triton: Triton,
    exported_tiny: Bundle,
    drawn: Integers,
    scheme: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(triton_memory, "_FOLDER", tmp_path)
    runtime = TritonRuntime(exported_tiny, triton.urls[scheme])
    assert "over the connection, since it shares no memory" in caplog.text
    np.testing.assert_array_equal(drawing(runtime, exported_tiny, 5), drawn)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_runtime_may_be_used_by_one_thread_after_the_other(
    triton: Triton, exported_tiny: Bundle, drawn: Integers, scheme: str
) -> None:
    runtime = TritonRuntime(exported_tiny, triton.urls[scheme])
    found = [drawing(runtime, exported_tiny, 5)]
    found += in_threads([lambda: drawing(runtime, exported_tiny, 5)])
    found += [drawing(runtime, exported_tiny, 5)]
    for one in found:
        np.testing.assert_array_equal(one, drawn)


def in_threads(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What `calls` return, each in a thread of its own."""
    results: dict[int, Any] = {}

    def run(number: int) -> None:
        results[number] = calls[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[number] for number in range(len(calls))]


def test_rows_of_concurrent_clients_share_calls_and_each_client_gets_its_own(
    triton: Triton, exported_tiny: Bundle, torch: TorchRuntime
) -> None:
    import tritonclient.grpc

    client = tritonclient.grpc.InferenceServerClient(triton.urls["grpc"].removeprefix("grpc://"))

    def counted() -> tuple[int, int]:
        [stats] = client.get_inference_statistics("tiny_step_guided", as_json=True)["model_stats"]
        return int(stats["inference_stats"]["success"]["count"]), int(stats["execution_count"])

    clients = 6
    expected = [drawing(torch, exported_tiny, 8, seed) for seed in range(clients)]
    before = counted()
    runtimes = [
        TritonRuntime(exported_tiny, triton.urls[SCHEMES[k % 2]], share_memory=k % 3 != 0)
        for k in range(clients)
    ]
    calls = [
        lambda runtime=runtime, k=k: drawing(runtime, exported_tiny, 8, k)
        for k, runtime in enumerate(runtimes)
    ]

    def shared() -> bool:
        for found, wanted in zip(in_threads(calls), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        requests, calls_made = (after - earlier for after, earlier in zip(counted(), before, strict=True))
        return calls_made < requests

    # A busy machine may run one client after the other.
    until(shared, 60)


# -- a server that goes away ---------------------------------------------------------------------------------


def test_a_server_killed_and_restarted_in_mid_load_costs_no_answer_and_spoils_none(
    own_triton: Triton, exported_tiny: Bundle, drawn: Integers
) -> None:
    over = threading.Event()

    def load(scheme: str) -> list[Integers]:
        runtime, found = TritonRuntime(exported_tiny, own_triton.urls[scheme]), []
        while not over.is_set():
            found.append(drawing(runtime, exported_tiny, 5))
        return [*found, drawing(runtime, exported_tiny, 5)]

    def disturb() -> None:
        try:
            threading.Event().wait(1.0)
            own_triton.kill()
            own_triton.start()
        finally:
            over.set()

    *loads, _ = in_threads([*(lambda scheme=scheme: load(scheme) for scheme in SCHEMES), disturb])
    for found in loads:
        assert len(found) > 2
        for one in found:
            np.testing.assert_array_equal(one, drawn)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_that_stays_away_ends_the_call_at_its_deadline(
    triton: Triton, exported_tiny: Bundle, scheme: str
) -> None:
    runtime = TritonRuntime(exported_tiny, triton.urls[scheme], timeout_s=0.5, deadline_s=0.7)
    assert triton.process is not None
    triton.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(RuntimeLost, match=r"^Triton at \S+ has been away for 0.7 s: ") as caught:
            drawing(runtime, exported_tiny, 1)
    finally:
        triton.process.send_signal(signal.SIGCONT)
    assert "\n" not in str(caught.value)


def test_a_call_over_grpc_takes_no_longer_than_is_left() -> None:
    """Hours would be allowed for one try, so only the end of all tries can end this one."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address("grpc", "127.0.0.1", silent.getsockname()[1])
        link = Link(address, 3600.0, time.monotonic() + 0.5)
        with pytest.raises(TritonTrouble, match="it cannot be reached"):
            link.check_live()
        with pytest.raises(TritonTrouble, match="no time is left"):
            link.is_ready("tiny_encode", 1)


@pytest.mark.anyio
async def test_a_worker_without_its_server_ends_and_the_job_is_done_when_there_is_one_again(
    own_triton: Triton, exported_tiny: Bundle, drawn: Integers, gateway_redis: str, keys: Keys
) -> None:
    store = JobStore(gateway_redis, keys, LIMITS)
    await store.start()
    first = worker_of(exported_tiny, own_triton, gateway_redis, keys)
    own_triton.kill()
    job = GenerateJob((0, 1, 2, 3, 4), tuple(range(5)), exported_tiny.manifest.sampling, "tokens")
    await store.submit(NewJob("a", "generate", job.pack(), fingerprint="a", rows=5))
    with pytest.raises(RuntimeLost):
        first.run()
    own_triton.start()
    second = worker_of(exported_tiny, own_triton, gateway_redis, keys)
    thread = threading.Thread(target=second.run)
    thread.start()
    view = await store.wait("a")
    second.stop()
    thread.join(20)
    await store.close()
    assert (view.state, view.attempts) == ("D", 1)
    assert view.result is not None
    grids = [TokenGrids.unpack(file).array()[0] for file in Pictures.unpack(view.result).files]
    np.testing.assert_array_equal(np.stack(grids), drawn)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def worker_of(bundle: Bundle, server: Triton, redis_url: str, keys: Keys) -> Worker:
    """A worker whose runtime is patient for a moment only."""
    return Worker(
        Consumer(redis_url, keys, uuid.uuid4().hex, LIMITS),
        TritonRuntime(bundle, server.urls["grpc"], deadline_s=0.5),
        bundle,
        table=SlotTable(8),
        lease_s=LIMITS.lease_s,
        drain_s=1.0,
        metrics=WorkerMetrics(),
    )


def test_no_row_is_blamed_for_a_server_that_stays_away() -> None:
    tried: list[Sequence[int]] = []

    def step(rows: Sequence[int]) -> None:
        tried.append(rows)
        raise RuntimeLost("Triton is away")

    # The worker ends, and the queue gives its jobs to one that finds a server.
    with pytest.raises(RuntimeLost):
        isolate(step, [1, 2, 3, 4], lambda row: True, lambda row, error: None)
    assert tried == [[1, 2, 3, 4]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_that_hangs_is_given_up_after_the_time_for_one_call_and_asked_again(
    triton: Triton, exported_tiny: Bundle, drawn: Integers, scheme: str
) -> None:
    runtime = TritonRuntime(exported_tiny, triton.urls[scheme], timeout_s=1.0)
    assert triton.process is not None
    triton.process.send_signal(signal.SIGSTOP)
    timer = threading.Timer(2.5, triton.process.send_signal, (signal.SIGCONT,))
    timer.start()
    np.testing.assert_array_equal(drawing(runtime, exported_tiny, 5), drawn)
    timer.join()


def test_what_the_graph_cannot_compute_is_refused_while_the_server_goes_on(
    triton: Triton, exported_tiny: Bundle, drawn: Integers
) -> None:
    runtime = TritonRuntime(exported_tiny, triton.urls["grpc"])
    config, manifest = exported_tiny.manifest.generator, exported_tiny.manifest
    assert config is not None
    batch = step_batch([Drawing.start(config, manifest.sampling, 0, 0)])
    with pytest.raises(RuntimeUnavailable, match=r"cannot run step_guided: .*out of data bounds") as caught:
        runtime.step(replace(batch, labels=np.array([99]), guidance_scale=np.ones(1, np.float32)))
    assert not isinstance(caught.value, RuntimeLost)
    np.testing.assert_array_equal(drawing(runtime, exported_tiny, 5), drawn)


def test_memory_of_a_killed_process_is_found_and_given_back(triton: Triton, exported_tiny: Bundle) -> None:
    code = (
        "import sys, time; from models.bundle import open_bundle; "
        "from models.runtime.triton_runtime import TritonRuntime; "
        "runtime = TritonRuntime(open_bundle(sys.argv[1]), sys.argv[2]); "
        "print(runtime._session.link.region.name, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(exported_tiny.path), triton.urls["grpc"]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        alive = Region(100)
        remove_orphans()
        assert Path(f"/dev/shm/{name}").exists()
        process.kill()
    TritonRuntime(exported_tiny, triton.urls["http"])
    assert not Path(f"/dev/shm/{name}").exists()
    assert Path(f"/dev/shm/{alive.name}").exists()
    alive.close()
    assert not Path(f"/dev/shm/{alive.name}").exists()


# -- a server that serves something else ---------------------------------------------------------------------


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:9", "http://127.0.0.1:9"])
def test_a_server_that_cannot_be_reached_is_said_in_one_line(exported_tiny: Bundle, url: str) -> None:
    assert refusal(exported_tiny, url).startswith(f"Triton at {url}: it cannot be reached (")


@pytest.mark.parametrize("url", ["localhost:8001", "ftp://localhost", "grpc://", "http://host:port"])
def test_an_address_of_another_form_is_refused(exported_tiny: Bundle, url: str) -> None:
    assert refusal(exported_tiny, url) == (
        f"the address of Triton is {url!r}; allowed are grpc://host:8001 and http://host:8000"
    )


def refusal(bundle: Bundle, url: str, **options: Any) -> str:
    """Why there is no runtime."""
    with pytest.raises(RuntimeUnavailable) as caught:
        TritonRuntime(bundle, url, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_models_of_another_bundle_are_refused(triton: Triton, exported_tiny: Bundle, scheme: str) -> None:
    url, manifest = triton.urls[scheme], exported_tiny.manifest
    assert manifest.generator is not None

    def changed(**values: Any) -> Bundle:
        other = replace(manifest, **values)
        return replace(exported_tiny, manifest=other, text=other.to_json())

    revised = changed(licence="MIT")
    assert refusal(revised, url) == (
        f"Triton at {url}: it serves {exported_tiny.ref} in fp32, not {revised.ref}; "
        "add that with: maskbit export triton"
    )
    assert "it serves no model other_encode; make its repository with: maskbit export triton" in refusal(
        changed(name="other"), url
    )
    # Of the same name and for pictures of another size.
    generator = replace(manifest.generator, img_size=32)
    assert "its model tiny_encode is not one of this bundle" in refusal(
        changed(image_size=32, generator=generator), url
    )
    assert refusal(exported_tiny, url, precision="fp16").startswith(
        f"Triton at {url}: it serves {exported_tiny.ref} in fp32, not {exported_tiny.ref} in fp16; "
    )
    assert refusal(exported_tiny, url, strict=True).endswith("maskbit export triton --strict")


# -- what it serves ------------------------------------------------------------------------------------------


def test_a_new_revision_is_a_new_version_beside_the_one_in_use(
    triton_environment: Path, exported_tiny: Bundle, revised_tiny: Bundle, drawn: Integers, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    write_repository(exported_tiny, repository, PYTHON)
    explicit = ("--model-control-mode=explicit", "--load-model=*")
    server = Triton(triton_environment, repository, tmp_path / "log", *explicit)
    server.start()
    try:
        old = TritonRuntime(exported_tiny, server.urls["grpc"])
        assert write_repository(revised_tiny, repository, PYTHON) == 2
        for graph in graph_specs(exported_tiny.manifest):
            server.load(f"tiny_{graph}")
        new = TritonRuntime(revised_tiny, server.urls["http"])
        for runtime, bundle in ((old, exported_tiny), (new, revised_tiny)):
            np.testing.assert_array_equal(drawing(runtime, bundle, 5), drawn)
        assert [version_of(TritonRuntime(exported_tiny, server.urls["grpc"])), version_of(new)] == [1, 2]
    finally:
        server.kill()


def version_of(runtime: TritonRuntime) -> int:
    return runtime._connected().served.number


def test_strict_models_take_batches_of_one_size_alone(
    triton_environment: Path, exported_tiny: Bundle, tmp_path: Path
) -> None:
    write_repository(exported_tiny, tmp_path / "repository", replace(PYTHON, strict=True))
    server = Triton(triton_environment, tmp_path / "repository", tmp_path / "log")
    server.start()
    try:
        runtime = TritonRuntime(exported_tiny, server.urls["grpc"], strict=True)
        assert runtime.buckets == (4,)
        strict = TorchRuntime(exported_tiny, device="cpu", strict=True)
        np.testing.assert_array_equal(drawing(runtime, exported_tiny, 6), drawing(strict, exported_tiny, 6))
    finally:
        server.kill()


def test_a_python_backend_that_numpy_would_mislead_is_not_ready(
    triton_environment: Path, triton_repository: Path, tmp_path: Path
) -> None:
    server = Triton(triton_environment, triton_repository, tmp_path / "log")
    # The environment of the tests, which has NumPy 2.
    server.programs = Path(sys.executable).parent
    server.launch()
    try:
        until(lambda: not server.alive, 60)
        assert (
            f"does not understand NumPy {np.__version__}; give it a Python with numpy<2"
            in server.log.read_text()
        )
    finally:
        server.kill()


# -- the service ---------------------------------------------------------------------------------------------


def test_the_service_draws_with_a_triton_that_is_killed_and_comes_back(
    own_triton: Triton, exported_tiny: Bundle, torch: TorchRuntime, tmp_path: Path
) -> None:
    arguments = ("--bundle", str(exported_tiny.path), "--runtime", "triton")
    seeds, width = [40, 41], exported_tiny.manifest.tokenizer.bits
    grids = draw(torch, exported_tiny.manifest, exported_tiny.manifest.sampling, [2, 2], seeds)
    with serving(tmp_path, *arguments, MASKBIT_TRITON_URL=own_triton.urls["grpc"]) as service:
        for seed, grid in zip(seeds, grids, strict=True):
            job = {"class_id": 2, "seed": seed, "format": "tokens"}
            answer = service.client.post("/generate", json=job).json()
            assert answer["images"][0]["tokens"] == bits.to_strings(grid, width)
            # The next job comes while there is no server.
            own_triton.kill()
            own_triton.launch()
