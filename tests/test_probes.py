"""What a worker and a gateway say to whoever watches them: probes over HTTP, and `maskbit health`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.bundle import MANIFEST, Bundle
from service.bench.running import free_port
from service.jobs.redis_server import RedisServer
from service.telemetry import WorkerMetrics
from service.worker import probes
from service.worker.probes import Probes
from tests.gateway_harness import FakeWorker, Gateway, until
from tests.service_fixtures import start, stop

pytest_plugins = ["tests.gateway_fixtures"]


class Watched:
    """A worker process without weights, on a port of its own."""

    def __init__(self, folder: Path, redis_url: str, bundle: Path, **settings: str) -> None:
        self.port, self.log = free_port(), folder / "worker.log"
        self.environment = {
            "MASKBIT_BUNDLE": str(bundle),
            "MASKBIT_LEASE_S": "2",
            "MASKBIT_METRICS_PORT": str(self.port),
            "MASKBIT_REDIS_URL": redis_url,
            "MASKBIT_RUNTIME": "noop",
            **settings,
        }
        self.process = start("worker", log=self.log, **self.environment)

    def get(self, path: str) -> httpx.Response | None:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=10)
        except httpx.TransportError:
            return None

    def readiness(self) -> dict[str, Any]:
        """The answer of /readyz, with its status; empty while nobody answers."""
        reply = self.get("/readyz")
        return {} if reply is None else {**reply.json(), "status": reply.status_code}

    def until(self, status: int) -> dict[str, Any]:
        """The first answer of /readyz with this status."""
        until(lambda: self.readiness().get("status") == status or self.process.poll() is not None, 30)
        assert self.process.poll() is None, self.log.read_text()
        return self.readiness()

    def health(self) -> subprocess.CompletedProcess[str]:
        return health("worker", **self.environment)


def health(part: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`maskbit health` in the surroundings of the part."""
    return subprocess.run(
        [sys.executable, "-m", "maskbit_cli", "health", part],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def bundle(plain_bundle: Bundle, tmp_path: Path) -> Path:
    """A folder that the test may change."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / MANIFEST).write_text(plain_bundle.text)
    return folder


@pytest.fixture
def watched(own_redis: RedisServer, bundle: Path, tmp_path: Path) -> Iterator[Watched]:
    worker = Watched(tmp_path, own_redis.url, bundle)
    yield worker
    if worker.process.poll() is None:
        stop(worker.process)


def test_a_worker_is_alive_from_the_start_and_ready_when_its_weights_are(watched: Watched) -> None:
    ready = watched.until(200)
    assert ready["ready"] is True
    assert (ready["bundle"].partition("@")[0], ready["runtime"], ready["device"]) == ("tiny", "noop", "cpu")
    assert watched.get("/livez").json() == {"alive": True}  # type: ignore[union-attr]
    assert watched.get("/startupz").json() == {"ready": True, "reason": ""}  # type: ignore[union-attr]
    done = watched.health()
    assert (done.returncode, done.stdout, done.stderr) == (0, "the worker is ready\n", "")
    metrics = watched.get("/metrics")
    assert metrics is not None
    families = {family.name for family in text_string_to_metric_families(metrics.text)}
    assert "maskbit_model_info" in families
    assert watched.get("/elsewhere").status_code == 404  # type: ignore[union-attr]
    assert stop(watched.process) == 0


def test_a_worker_without_redis_lives_on_and_says_so_until_redis_is_back(
    watched: Watched, own_redis: RedisServer
) -> None:
    watched.until(200)
    own_redis.stop()
    assert watched.until(503)["reason"] == "Redis does not answer as it should"
    for path in ("/livez", "/startupz"):
        assert watched.get(path).status_code == 200  # type: ignore[union-attr]
    done = watched.health()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "the worker is not ready: Redis does not answer as it should\n"
    own_redis.start()
    watched.until(200)
    told = [line for line in watched.log.read_text().splitlines() if "service.jobs" in line]
    assert len(told) % 2 == 0
    for away, back in zip(told[::2], told[1::2], strict=True):
        assert "WARNING" in away
        assert "Redis does not answer as it should, trying again: ConnectionError" in away
        assert "INFO" in back
        assert back.endswith("Redis answers again")
    assert told


def test_a_redis_without_the_worker_s_database_is_one_that_does_not_answer(
    own_redis: RedisServer, bundle: Path, tmp_path: Path
) -> None:
    worker = Watched(tmp_path, f"{own_redis.url}?db=99", bundle)
    until(lambda: worker.readiness().get("reason") == "Redis does not answer as it should", 30)
    assert stop(worker.process) == 0
    log = worker.log.read_text()
    assert log.count("trying again: ConnectionError: DB index is out of range") == 1
    assert "Traceback" not in log


def test_a_worker_that_never_saw_redis_says_so_in_one_line_and_when_asked(
    bundle: Path, tmp_path: Path
) -> None:
    worker = Watched(tmp_path, f"redis://127.0.0.1:{free_port()}/0", bundle)
    assert worker.until(503)["ready"] is False
    until(lambda: worker.get("/startupz").status_code == 200)  # type: ignore[union-attr]
    until(lambda: worker.readiness()["reason"] == "Redis does not answer as it should")
    stop(worker.process)
    warnings = [line for line in worker.log.read_text().splitlines() if "Redis" in line]
    assert any("the settings of Redis cannot be read" in line for line in warnings)
    assert all("WARNING" in line for line in warnings)


def test_a_revision_that_a_worker_refuses_is_told_until_it_is_gone(
    watched: Watched, bundle: Path, plain_bundle: Bundle
) -> None:
    watched.until(200)
    (bundle / MANIFEST).write_text(plain_bundle.text.replace('"format_version": 1', '"format_version": 99'))
    refused = until(lambda: watched.readiness()["refused"])
    assert "format_version is 99; this version reads 1" in refused
    assert watched.readiness()["ready"] is True
    (bundle / MANIFEST).write_text(plain_bundle.text)
    until(lambda: watched.readiness()["refused"] == "")


def test_a_worker_for_a_gpu_that_is_not_there_ends_with_one_line(bundle: Path, tmp_path: Path) -> None:
    worker = Watched(tmp_path, "unix:///nowhere", bundle, MASKBIT_RUNTIME="torch", MASKBIT_DEVICE="cuda:99")
    assert worker.process.wait(60) == 2
    [line] = worker.log.read_text().splitlines()
    assert "cuda:99" in line


def test_a_worker_that_loads_is_alive_and_not_ready_and_ends_at_once(bundle: Path, tmp_path: Path) -> None:
    (bundle / MANIFEST).unlink()
    os.mkfifo(bundle / MANIFEST)  # whoever reads it waits
    worker = Watched(tmp_path, "unix:///nowhere", bundle)
    answer = worker.until(503)
    assert answer["reason"] == "the weights are not loaded and warm yet"
    assert worker.get("/livez").status_code == 200  # type: ignore[union-attr]
    started = worker.get("/startupz")
    assert started is not None
    assert (started.status_code, started.json()["reason"]) == (503, answer["reason"])
    assert "the weights are not loaded" in worker.health().stderr
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(20) == 128 + signal.SIGTERM


def test_a_worker_that_drains_is_not_ready() -> None:
    worker = Probes(WorkerMetrics())
    worker.follow(lambda: {"ready": False, "reason": "the worker is ending"})
    status, kind, body = worker.reply("/readyz?verbose")
    assert (status, kind) == (503, "application/json")
    assert b"the worker is ending" in body


def test_a_client_that_says_nothing_keeps_nobody_from_the_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes._Handler, "timeout", 0.5)
    port = Probes(WorkerMetrics()).listen("127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", port)) as idle:
        assert httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
        idle.settimeout(20)
        assert idle.recv(1) == b""


def test_whoever_opens_many_connections_takes_few_threads_and_keeps_nobody_from_the_probes() -> None:
    port = Probes(WorkerMetrics()).listen("127.0.0.1", 0)
    before = threading.active_count()
    with ExitStack() as held:
        idle = [held.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(200)]
        assert httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
        until(lambda: threading.active_count() - before <= probes._MOST)
        idle[0].settimeout(20)
        assert idle[0].recv(1) == b""
    until(lambda: threading.active_count() == before)


def test_a_gateway_is_healthy_without_a_worker_too(gateway: Gateway) -> None:
    until(lambda: gateway.client.get("/readyz").status_code == 503)
    done = health("gateway", MASKBIT_PORT=str(gateway.port), MASKBIT_HOST="0.0.0.0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "the gateway is ready\n", "")


def test_a_gateway_that_is_not_ready_gives_the_reason_in_one_line(bundle: Path, tmp_path: Path) -> None:
    settings = {
        "MASKBIT_BUNDLE": str(bundle),
        "MASKBIT_PORT": str(free_port()),
        "MASKBIT_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
    }
    process = start("gateway", log=tmp_path / "gateway.log", **settings)
    done = until(lambda: (told := health("gateway", **settings)) and "not ready" in told.stderr and told, 60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("the gateway is not ready: ")
    assert "queue" in done.stderr
    assert done.stderr.count("\n") == 1
    assert stop(process) == 0


@pytest.mark.parametrize(
    ("part", "settings", "code", "words"),
    [
        ("gateway", {"MASKBIT_PORT": "1"}, 1, "the gateway does not answer on 127.0.0.1 port 1: "),
        ("worker", {}, 2, "only where MASKBIT_METRICS_PORT is set"),
        ("worker", {"MASKBIT_METRICS_PORT": "many"}, 2, "setting metrics_port is 'many'"),
        ("redis", {}, 2, "'redis' is not one of 'gateway', 'worker'"),
    ],
)
def test_asking_nobody_or_wrongly_gets_one_line(
    part: str, settings: dict[str, str], code: int, words: str
) -> None:
    done = health(part, **settings)
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_is_no_answer_of_ours_is_no_readiness() -> None:
    class Other(Probes):
        def reply(self, path: str) -> Any:
            return 500, "text/html", b"<html>"

    port = Other(WorkerMetrics()).listen("127.0.0.1", 0)
    done = health("worker", MASKBIT_METRICS_PORT=str(port))
    assert (done.returncode, done.stderr) == (1, "the worker is not ready: 500\n")


def test_a_gateway_is_not_taken_for_a_worker(gateway: Gateway, worker: FakeWorker) -> None:
    done = health("worker", MASKBIT_METRICS_PORT=str(gateway.port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"what answers on 127.0.0.1 port {gateway.port} is no worker\n"
    worker.stop()
    until(lambda: gateway.client.get("/readyz").status_code == 503)
    done = health("worker", MASKBIT_METRICS_PORT=str(gateway.port))
    assert (done.returncode, done.stderr) == (1, "the worker is not ready: 503\n")


def test_a_worker_is_not_taken_for_a_gateway(watched: Watched) -> None:
    watched.until(200)
    done = health("gateway", MASKBIT_PORT=str(watched.port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"what answers on 127.0.0.1 port {watched.port} is no gateway\n"


def test_a_worker_whose_port_is_taken_ends_with_one_line(bundle: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker = Watched(tmp_path, "unix:///nowhere", bundle, MASKBIT_METRICS_PORT=str(port))
        assert worker.process.wait(60) == 2
    [line] = worker.log.read_text().splitlines()
    assert f"cannot listen on 127.0.0.1:{port} for metrics and probes: Address already in use" in line
    assert "MASKBIT_METRICS_PORT" in line
