"""Step-level batching against whole requests: the two bench-only tables, the arrivals, and the report."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from typer.testing import CliRunner

from maskbit_cli import build_app
from models.bundle import open_bundle
from models.runtime.loading import load_runtime
from models.schedule import StepPlan
from service.bench.arrivals import STEPS, Arrival, Outcome, all_at_once, poisson
from service.bench.engine_run import run_engine
from service.bench.whole_requests import EarlyExitTable, FixedBatchTable
from service.worker.scheduler import Row, SlotTable

Table = type[SlotTable]
GUIDED = StepPlan(guidance_scale=3.0, temperature=1.0, noise_temperature=0.0, mask_count=0)


def steps_until_answered(table: SlotTable, lengths: list[int]) -> tuple[dict[str, int], int]:
    """After how many steps each task is answered, by name, and how many rows the network saw in all."""
    for name, steps in enumerate(lengths):
        tokens = np.zeros((4, 2), dtype=np.int64)
        table.add([Row(label=0, seed=0, plans=[GUIDED] * steps, tokens=tokens, task_id=str(name), image=0)])
    answered: dict[str, int] = {}
    step = rows = 0
    while len(answered) < len(lengths):
        active = table.admit()
        rows += len(active)
        step += 1
        for row in active:
            row.step += 1
        answered |= {row.task_id: step for row in table.take_finished()}
    return answered, rows


@pytest.mark.parametrize(
    ("table", "answered", "rows"),
    [
        # The third starts when the first is done.
        (SlotTable, {"0": 2, "1": 5, "2": 5}, 10),
        # The first two are answered together; only then the third starts.
        (EarlyExitTable, {"0": 5, "1": 5, "2": 8}, 10),
        # The first one's place is paid for to the end of its batch.
        (FixedBatchTable, {"0": 5, "1": 5, "2": 8}, 13),
    ],
)
def test_whole_requests_wait_for_the_longest_of_their_batch(
    table: Table, answered: dict[str, int], rows: int
) -> None:
    assert steps_until_answered(table(2), [2, 5, 3]) == (answered, rows)


def test_arrivals_are_poisson_at_the_rate_asked_for() -> None:
    arrivals = poisson(4000, rate=50.0)
    assert arrivals == poisson(4000, rate=50.0)
    gaps = [b.at_s - a.at_s for a, b in pairwise(arrivals)]
    assert sum(gaps) / len(gaps) == pytest.approx(1 / 50, rel=0.05)
    # The share of gaps longer than the mean is 1/e in a Poisson process.
    assert sum(gap > 1 / 50 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03)
    for steps in STEPS:
        assert sum(one.steps == steps for one in arrivals) == pytest.approx(1000, rel=0.1)


def test_a_request_is_good_by_its_own_time_alone() -> None:
    latencies = {Arrival(0, 0.0, 8): 0.4, Arrival(1, 0.0, 64): 0.4, Arrival(2, 0.0, 8): 0.1}
    outcome = Outcome(latencies, seconds=2.0)
    alone_s = {8: 0.1, 64: 0.8}
    assert outcome.goodput(2.0, alone_s) == 1.0
    assert outcome.rate == 1.5
    assert outcome.quantile_s(0.99) == 0.4
    assert outcome.slowdown(0.99, alone_s) == pytest.approx(4.0)


@pytest.mark.parametrize("table", [SlotTable, EarlyExitTable, FixedBatchTable])
def test_an_engine_draws_all_that_arrives_with_every_table(table: Table) -> None:
    bundle = open_bundle("fruit")
    arrivals = all_at_once(9)
    outcome = run_engine(load_runtime(bundle, "noop"), bundle.manifest, table(4), arrivals)
    assert set(outcome.latencies) == set(arrivals)
    assert min(outcome.latencies.values()) > 0
    assert max(outcome.latencies.values()) <= outcome.seconds


def test_the_load_report_has_every_scheduler_and_the_service() -> None:
    arguments = ["--runtime", "noop", "--requests", "12", "--slots", "2", "--service"]
    result = CliRunner().invoke(build_app(["bench"]), ["bench", "load", *arguments])
    assert result.exit_code == 0, result.output
    for line in ("bare full batches", "engine, saturated", "service, saturated", "12 requests at"):
        assert re.search(rf"^{line} +[\d.]+", result.output, re.MULTILINE), result.output
    own = r"^whole requests, fixed batch, saturated [\d.]+ pictures/s: \d+% of it is offered$"
    assert re.search(own, result.output, re.MULTILINE), result.output
    numbers = r" +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+"
    for title in ("whole requests, fixed batch", "whole requests, early exit", "step-level, HTTP and queue"):
        assert re.search(rf"^{title}{numbers} +[\d.]+ +[\d.]+ +([\d.]+|inf)$", result.output, re.MULTILINE)
    assert re.search(rf"^step-level{numbers}$", result.output, re.MULTILINE)
