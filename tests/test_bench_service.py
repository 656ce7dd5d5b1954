"""The benchmarks of the service in a tiny form: real processes, and the lines that they promise."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis
from typer.testing import CliRunner

from maskbit_cli import build_app
from models.errors import ConfigError
from service.bench.client import Target, answer_of, closed_loop, post_all
from service.bench.redis_cost import operations
from service.bench.rivals.environment import programs_of
from service.bench.rivals.rival import RIVALS, Rival, rivals_named
from service.bench.rivals.running import running_rival
from service.bench.running import RunningService, running_service, set_durability
from service.bench.service import JOB
from service.errors import Unavailable
from service.jobs.redis_server import RedisServer

# A server that answers as a rival does, and starts a process that outlives it.
OUTSIDER = """
import os, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = Path(os.environ["ANSWER"]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def noop_service() -> Iterator[RunningService]:
    with running_service("noop") as service:
        yield service


def run_bench(*arguments: str) -> str:
    result = CliRunner().invoke(build_app(["bench"]), ["bench", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def seen() -> Iterator[tuple[int, list[tuple[str, bytes]]]]:
    """The port of a server, and the requests that it has seen."""
    requests: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((f"{self.path} {self.headers['Content-Type']} {self.client_address[1]}", body))
            status = 500 if b"fail" in body else 200
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1], requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_client_keeps_its_connections_and_sends_what_it_says(
    seen: tuple[int, list[tuple[str, bytes]]],
) -> None:
    port, requests = seen
    sample = post_all([Target(port, "/a", {"x": 1}), Target(port, "/b", {"x": 2})], clients=3, requests=12)
    assert len(sample.latencies) == len(requests) == 12
    places = [head.split() for head, _ in requests]
    assert {(path, kind) for path, kind, _ in places} == {
        ("/a", "application/json"),
        ("/b", "application/json"),
    }
    assert len({connection for *_, connection in places}) == 3
    assert sorted(json.loads(body)["x"] for _, body in requests) == [1] * 6 + [2] * 6


def test_a_closed_loop_measures_what_it_waited_for(seen: tuple[int, list[tuple[str, bytes]]]) -> None:
    port, requests = seen
    sample = closed_loop(Target(port, "/a", {}), clients=2, seconds=0.2)
    assert len(sample.latencies) == len(requests) > 2
    assert sum(sample.latencies) <= 2 * sample.seconds
    assert min(sample.latencies) * 1e3 <= sample.quantile_ms(0.5) <= sample.quantile_ms(0.99)


def test_an_error_of_the_server_ends_the_measurement(seen: tuple[int, list[tuple[str, bytes]]]) -> None:
    with pytest.raises(Unavailable, match="500: ok"):
        answer_of(Target(seen[0], "/a", {"x": "fail"}))


def test_the_service_is_compared_by_durability() -> None:
    output = run_bench("service", "--clients", "4", "--seconds", "0.2", "--rounds", "1")
    rows = re.findall(r"^maskbit, fsync (\w+) +(\d+) +[\d.]+ +[\d.]+", output, re.MULTILINE)
    assert [name for name, _ in rows] == ["always", "everysec", "off"] * 2
    assert all(int(rate) > 0 for _, rate in rows)
    for part in ("one fsync of this disk", "1 client ", "4 clients "):
        assert part in output


def test_durability_is_what_redis_was_told(own_redis: RedisServer) -> None:
    with Redis.from_url(own_redis.url) as redis:
        set_durability(own_redis.url, "everysec")
        found = redis.config_get("append*")
        assert (found["appendonly"], found["appendfsync"]) == ("yes", "everysec")
        set_durability(own_redis.url, "off")
        assert redis.config_get("appendonly") == {"appendonly": "no"}


def test_a_rival_answers_the_same_and_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(OUTSIDER)
    rival = Rival("outsider", "1", "none", lambda programs, port: [sys.executable, str(script), str(port)])
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with running_rival(rival, tmp_path, JOB, b'{"as": "ours"}') as target:
        assert answer_of(target) == b'{"as": "ours"}'
        started = {child.pid for child in psutil.Process().children(recursive=True)} - before
        assert len(started) == 2
    assert not any(psutil.pid_exists(pid) for pid in started)


def test_a_rival_that_cannot_be_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(Unavailable, match=r"bentoml==.*cannot be installed.*PyPI"):
        programs_of(RIVALS["bentoml"], tmp_path)


def test_an_unknown_rival_is_refused_with_the_known_ones() -> None:
    assert rivals_named("") == []
    assert [rival.name for rival in rivals_named("ray, litserve")] == ["ray", "litserve"]
    with pytest.raises(ConfigError, match="'torchserve'; allowed are litserve, bentoml, ray"):
        rivals_named("ray,torchserve")


def test_commands_are_counted_one_by_one_however_many_come_together(noop_service: RunningService) -> None:
    target = Target(noop_service.port, "/generate", {**JOB, "steps": 16})
    with Redis.from_url(noop_service.redis_url) as redis:
        post_all([target], clients=1, requests=5)
        before: Any = redis.info("commandstats")
        cost = operations(redis, lambda: post_all([target], clients=16, requests=80))
        after: Any = redis.info("commandstats")
    done = {name: stats["calls"] - before.get(name, {"calls": 0})["calls"] for name, stats in after.items()}
    # The service goes on between the looks, and MONITOR leaves administrative commands out.
    assert cost.scripts == pytest.approx(done["cmdstat_evalsha"], abs=5)
    assert cost.sent + cost.inside == pytest.approx(sum(done.values()), rel=0.15)
    assert cost.sent > cost.scripts > 80


def test_a_picture_of_16_steps_costs_redis_at_most_12_commands() -> None:
    output = run_bench("redis", "--pictures", "40", "--clients", "4", "--jobs", "100")
    costs = [float(cost) for cost in re.findall(r"clients +([\d.]+) sent", output)]
    assert len(costs) == 2
    assert 0 < min(costs) <= max(costs) <= 12
    sizes = dict(re.findall(r"a waiting (\w+) job takes +([\d,]+) bytes", output))
    assert int(sizes["generate"].replace(",", "")) > 500
    # The pixels of the bundled model's pictures.
    assert int(sizes["tokenize"].replace(",", "")) > 64 * 64 * 3


def test_the_soak_reports_the_memory_of_every_process() -> None:
    output = run_bench("soak", "--requests", "60", "--clients", "4")
    assert len(re.findall(r"^ +[\d,]+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+$", output, re.MULTILINE)) == 20
    for part in ("gateway", "worker", "redis"):
        assert re.search(rf"^{part} +[+-][\d.]+ MiB \([+-][\d.]+%\) from request 15 to 60$", output, re.M)


def test_a_service_that_does_not_start_is_explained() -> None:
    with pytest.raises(Unavailable, match="nowhere"), running_service("noop", bundle="nowhere"):
        pass
