"""The real service in processes of its own: `maskbit serve`, or Redis, gateway and workers one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from service.bench.running import free_port
from tests.gateway_harness import until

START_TIMEOUT_S = 60.0


@dataclass
class Running:
    """A service that is ready, its process and what it wrote."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    client: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[dict[str, object]]:
        reply = self.client.get("/readyz")
        return list(reply.json()["workers"]) if reply.status_code == 200 else []


def start(*arguments: str, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """A `maskbit` process whose output goes to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "maskbit_cli", *arguments],
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def stop(process: subprocess.Popen[bytes]) -> int:
    """SIGTERM, and the exit code."""
    process.terminate()
    return process.wait(40)


@contextmanager
def serving(folder: Path, *arguments: str, **environment: str) -> Iterator[Running]:
    """`maskbit serve` on a free port, ready."""
    port, log = free_port(), folder / "serve.log"
    place = ("--port", str(port), "--state-dir", str(folder / "state"))
    process = start("serve", *place, *arguments, log=log, **environment)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        running = Running(port, process, log, client)
        try:
            until(lambda: process.poll() is not None or _answers(running), START_TIMEOUT_S)
            assert process.poll() is None, log.read_text()
            yield running
        finally:
            if process.poll() is None:
                stop(process)


def _answers(running: Running) -> bool:
    try:
        return running.client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One `maskbit serve` with the bundled model for all tests that leave it whole."""
    with serving(tmp_path_factory.mktemp("service")) as running:
        yield running
