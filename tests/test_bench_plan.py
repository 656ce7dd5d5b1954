"""The benchmarks behind `maskbit plan` in a tiny form: real processes, and files that the plan reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import httpx
import numpy as np
import pytest
from redis import Redis
from typer.testing import CliRunner

from maskbit_cli import build_app
from models.bundle import open_bundle
from models.errors import InputError
from models.runtime.base import CPU_BUCKETS
from models.runtime.noop_runtime import NoopRuntime
from service.bench import parts, plan_check
from service.bench.arrivals import Arrival
from service.bench.plan_check import CALL_S, ROW_S, measure_paced, predict
from service.bench.running import running_service
from service.bench.steps import measure
from service.pictures import picture_file
from service.plan import part_costs, step_times
from service.plan.load import Flow
from service.plan.measured import FRUIT, PARTS
from service.plan.part_costs import PartCosts
from service.plan.simulation import Scene
from service.plan.step_times import StepTimes

SIDE = open_bundle("fruit").manifest.image_size
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def paced() -> StepTimes:
    return measure_paced("fruit")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(build_app([arguments[0]]), list(arguments))
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.mark.parametrize("bench", ["steps", "parts"])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path, bench: str
) -> None:
    (tmp_path / "file").touch()
    for out, reason in ((tmp_path, "it is a folder"), (tmp_path / "file" / "out.json", "File exists")):
        result = CliRunner().invoke(build_app(["bench"]), ["bench", bench, "--out", str(out)])
        assert isinstance(result.exception, InputError)
        assert reason in str(result.exception)
        assert result.output == ""


def test_step_times_are_written_for_the_plan(tmp_path: Path) -> None:
    file = tmp_path / "steps.json"
    options = ("--runtime", "noop", "--slots", "4", "--rounds", "2", "--seconds", "0.2", "--out", str(file))
    output = run("bench", "steps", *options)
    for title in ("step", "decode", "encode", "file", "service"):
        assert re.search(rf"^{title} +[\d.]", output, re.MULTILINE), output
    times = step_times.load(file)
    assert (times.slots, times.most_rows) == (4, 8)
    assert times.sampling == open_bundle("fruit").manifest.sampling
    assert min(times.service_s, times.file_s, *times.step_s.values()) > 0
    planned = run("plan", "--rate", "20/s", "--p99", "1s", "--requests", "300", "--bench", str(file))
    assert f"step times: {file}; {times.model}; noop fp32 on cpu; " in planned


def test_steps_are_measured_in_the_sizes_that_calls_are_padded_to() -> None:
    class Padded(NoopRuntime):
        buckets = CPU_BUCKETS

    bundle = open_bundle("fruit")
    times = measure(Padded(bundle), bundle, slots=5, rounds=1)
    assert tuple(times.step_s) == (1, 2, 3, 4, 6, 8, 12)
    assert tuple(times.decode_s) == (1, 2, 3, 4, 6)
    assert tuple(times.encode_s) == (1, 2, 3, 4, 6, 8, 12, 16)
    assert times.buckets == CPU_BUCKETS


def test_a_paced_call_takes_at_least_the_time_that_it_is_told(paced: StepTimes) -> None:
    assert all(seconds >= CALL_S + ROW_S * rows for rows, seconds in paced.step_s.items())
    assert all(seconds >= CALL_S + ROW_S * count for count, seconds in paced.decode_s.items())
    # Only while it was measured.
    assert NoopRuntime.step.__qualname__ == "NoopRuntime.step"


def test_a_prediction_is_for_the_same_arrivals(paced: StepTimes) -> None:
    arrivals = [Arrival(0, 0.0, 8), Arrival(1, 9.0, 16)]
    outcome = predict(Scene(times=paced, workers=2, slots=8), arrivals)
    assert set(outcome.latencies) == set(arrivals)
    # Each is alone; the guided steps of the model have two rows.
    assert outcome.latencies[arrivals[0]] >= 9 * CALL_S + 8 * ROW_S
    assert outcome.latencies[arrivals[1]] > outcome.latencies[arrivals[0]]


def test_a_picture_to_tokenize_costs_redis_the_bytes_that_the_plan_adds() -> None:
    times = measure(NoopRuntime(open_bundle("fruit")), open_bundle("fruit"), slots=1, rounds=1)
    assert (times.pixels_bytes, times.tokens_bytes) == (FRUIT.pixels_bytes, FRUIT.tokens_bytes)
    flow = Flow(rate=1.0, result_bytes=times.tokens_bytes, payload_bytes=times.pixels_bytes)
    picture = picture_file(np.zeros((SIDE, SIDE, 3), dtype=np.uint8), "png")
    with running_service("noop") as service, Redis.from_url(service.redis_url) as redis:
        redis.config_set("auto-aof-rewrite-percentage", 0)
        with httpx.Client(base_url=f"http://127.0.0.1:{service.port}") as client:
            written, passed = spent(redis, lambda: client.post("/tokenize", content=picture, headers=PNG))
    assert written == pytest.approx(PARTS.request_disk_bytes + flow.written_bytes, rel=0.1)
    # What idle parts send meanwhile is in it, and the small result twice in the plan.
    assert passed == pytest.approx(PARTS.request_bytes + PARTS.byte_bytes * flow.passing_bytes, rel=0.2)


def spent(redis: Redis, ask: Callable[[], httpx.Response], requests: int = 60) -> tuple[float, float]:
    """Bytes on the disk and on the network of Redis, of each request."""
    ask()
    before = parts.written(redis), parts.network(redis)
    for _ in range(requests):
        assert ask().status_code == 200
    return (parts.written(redis) - before[0]) / requests, (parts.network(redis) - before[1]) / requests


def test_part_costs_are_written_for_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_ANNOUNCEMENTS", 30)
    monkeypatch.setattr(parts, "_ARRIVALS", 300)
    file = tmp_path / "parts.json"
    options = ("--requests", "30", "--clients", "4", "--jobs", "50", "--seconds", "0.2", "--out", str(file))
    output = run("bench", "parts", *options)
    assert len(re.findall(r" [\d,]+\.\d\d( µs| bytes)?$", output, re.MULTILINE)) == 19
    costs = part_costs.load(file)
    for field in fields(PartCosts):
        value = getattr(costs, field.name)
        assert isinstance(value, str) or value >= 0
    # Every request is at least submitted, claimed and recorded, in scripts that do more inside.
    assert costs.request_commands > 2
    assert costs.request_inside > costs.request_commands
    # A result reaches Redis and leaves it.
    assert costs.byte_bytes == pytest.approx(2, abs=0.5)
    # What is written is at least the job and its end.
    assert costs.request_disk_bytes > 500
    assert costs.waiting_bytes > 500
    assert costs.announce_each_redis_s > 0


def test_a_prediction_is_shown_beside_the_real_service(
    paced: StepTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_check, "measure_paced", lambda bundle: paced)
    monkeypatch.setattr(plan_check, "_SERVICE_S", 0.3)
    monkeypatch.setattr(plan_check, "_WARM_UP", 2)
    output = run(
        *("bench", "plan", "--workers", "2", "--loads", "90", "--requests", "3", "--model-requests", "0")
    )
    numbers = r"( +[\d.]+ +[\d.]+ +[\d.]+){2}"
    assert re.search(rf"^paced +2 +90% +3{numbers}$", output, re.MULTILINE), output
    assert re.search(r"^predicted over measured: from [\d.]+ to [\d.]+$", output, re.MULTILINE)
