"""A real Prometheus that watches what a test runs, and the tool that checks its files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.bench.running import free_port
from tests.documents import ROOT
from tests.gateway_harness import until

FILES = ROOT / "deploy" / "helm" / "maskbit" / "files"
CONFIG = ROOT / "deploy" / "monitoring" / "prometheus.yml"
RULES = ("recording.yaml", "alerts.yaml")
OFTEN = "1s"
"""Between two scrapes, and for each of them: one that takes longer leaves its target without a sample."""
PATIENCE_S = 30.0


def program(name: str) -> str:
    """`prometheus` or `promtool` on PATH; without it the test is skipped, or fails where all must run."""
    found = shutil.which(name)
    if found is None and os.environ.get("MASKBIT_REQUIRE_ALL") == "1":
        pytest.fail(f"there is no {name} on PATH, and MASKBIT_REQUIRE_ALL=1 demands it")
    if found is None:
        pytest.skip(f"there is no {name} on PATH")
    return found


def promtool(*arguments: str | Path) -> None:
    """Fail, with what it says, unless promtool finds nothing wrong."""
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class Prometheus:
    """A server that is ready."""

    client: httpx.Client
    at: float | None = None
    """Unix time that queries ask about; None for now."""

    def api(self, path: str, **parameters: str) -> Any:
        """The data of an answer."""
        reply = self.client.get(f"/api/v1/{path}", params=parameters)
        assert reply.status_code == 200, (parameters, reply.text)
        return reply.json()["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each sample at that time, in no particular order."""
        moment = {} if self.at is None else {"time": f"{self.at:.3f}"}
        result = self.api("query", query=expression, **moment)["result"]
        return [(one["metric"], float(one["value"][1])) for one in result]

    def value(self, expression: str) -> float | None:
        """The value of the only sample, None for none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return found[0][1] if found else None

    def at_rest(self, targets: int, records: Iterable[str]) -> Prometheus:
        """At the first moment by which all that happened before this call is scraped, and in `records`.

        Later scrapes and evaluations, however late, change no answer about it.
        """
        self._newer_than_now(targets, ["up"])
        return self._newer_than_now(targets, ["up", *records])

    def _newer_than_now(self, targets: int, names: Iterable[str]) -> Prometheus:
        now = time.time()
        found: Prometheus = until(lambda: self._settled(targets, names, now), PATIENCE_S)
        return found

    def _settled(self, targets: int, names: Iterable[str], since: float) -> Prometheus | None:
        """At the last moment for which none of `names` can still come; None unless all are newer and up."""
        past = replace(self, at=self._oldest(names))
        whole = past._oldest(names) > since and past.value("sum(up)") == targets
        return past if whole else None

    def _oldest(self, names: Iterable[str]) -> float:
        """Unix time of the last sample, of the series that has waited longest for one; 0 without any."""
        return min(self.value(f"min(timestamp({name}))") or 0.0 for name in names)


def laid_out(folder: Path) -> Path:
    """The shipped configuration in `folder`, and the rules where it finds them."""
    (folder / "maskbit").mkdir()
    for name in RULES:
        shutil.copy(FILES / name, folder / "maskbit")
    return Path(shutil.copy(CONFIG, folder))


def aim(file: Path, targets: Mapping[str, int]) -> None:
    """Let a shipped configuration look at the loopback ports `targets`, by job name, and much more often."""
    config = yaml.safe_load(file.read_text())
    config["global"] = {"scrape_interval": OFTEN, "scrape_timeout": OFTEN, "evaluation_interval": OFTEN}
    assert {job["job_name"] for job in config["scrape_configs"]} == set(targets)
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{targets[job['job_name']]}"]}]
    file.write_text(json.dumps(config))


@contextmanager
def prometheus_running(folder: Path, targets: Mapping[str, int]) -> Iterator[Prometheus]:
    """Prometheus as shipped, aimed at `targets`."""
    executable, config, port = program("prometheus"), laid_out(folder), free_port()
    aim(config, targets)
    place = (f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [executable, f"--config.file={config}", *place], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            until(lambda: process.poll() is not None or _is_ready(client), PATIENCE_S)
            assert process.poll() is None, (folder / "log").read_text()
            yield Prometheus(client)
    finally:
        process.terminate()
        process.wait(20)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.HTTPError:
        return False
