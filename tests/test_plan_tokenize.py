"""`maskbit plan` with pictures to tokenize: they take their part of the workers and of Redis."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from service.plan import sizing
from service.plan.fit import Fit
from service.plan.load import Flow
from service.plan.measured import FRUIT, PARTS
from service.plan.outcome import Outcome
from service.plan.requests import Request
from service.plan.saturation import memory_bytes
from service.plan.sizing import MOST_FULL, evaluate, tokenize_capacity
from tests.plan_harness import LOAD, WISH, both_of, run_plan, share, values_of


def test_tokenizing_takes_its_part() -> None:
    options = ("--rate", "4/s", "--steps", "4", "--workers", "1", "--requests", "100")
    alone, (both, output) = values_of(*options), both_of(*options, "--tokenize", "20/s")
    assert both["p99_s"] > alone["p99_s"]
    assert both["busy"] > alone["busy"]
    assert re.search(r"^tokenize +p99 [\d.]+ s at 20/s$", output, re.MULTILINE)
    assert f"p99 {both['tokenize_p99_s']:.3g} s at 20/s" in output
    assert alone["tokenize_p99_s"] is None
    # A picture of 64 pixels as it is and twice its tokens, besides what any request writes.
    written = 20 * (PARTS.request_disk_bytes + 64 * 64 * 3 + 2 * 16 * 16 * 4)
    more = both["parts"]["disk of Redis"]["share"] - alone["parts"]["disk of Redis"]["share"]
    assert more == pytest.approx(written / 125e6, rel=0.01)


def test_more_to_tokenize_than_the_workers_can_is_an_overload_and_sized_like_one() -> None:
    load = ("--rate", "10/s", "--steps", "1", "--tokenize", "800/s", "--requests", "100")
    values, output = both_of(*load, "--workers", "1")
    assert re.search(r"^OVERLOAD .+ waiting grows without an end$", output, re.MULTILINE)
    assert values["of_full_speed"] > 800 / tokenize_capacity(FRUIT) > 1
    # Drawing has its half of the worker.
    assert values["p99_s"] < 1 < values["tokenize_p99_s"]
    assert values["redis_memory_bytes"] > 0.9 * values["open_jobs"] * FRUIT.pixels_bytes
    sized = values_of(*load, "--p99", "1s")
    assert sized["workers"] >= 2
    assert sized["of_full_speed"] <= MOST_FULL
    assert max(sized["p99_s"], sized["tokenize_p99_s"]) <= 1


def test_the_capacity_of_tokenizing_is_what_the_simulation_reaches() -> None:
    rate = 2 * tokenize_capacity(FRUIT)
    wish = replace(WISH, rate=0.5, steps=1, tokenize_rate=rate, deadline_s=1e6, requests=4)
    for outcome in evaluate(wish, FRUIT, 1).outcomes:
        ends = sorted(one.at_s + seconds for one, seconds in outcome.latencies.items() if not one.generate)
        reached = (len(ends) - 1) / (ends[-1] - ends[0])
        assert reached == pytest.approx(tokenize_capacity(FRUIT), rel=0.05)


def test_the_goal_holds_for_the_kind_of_requests_that_is_slower() -> None:
    drawn, coded = Request(0, 1.0, steps=4), Request(1, 1.0)
    both, alone = Outcome(latencies={drawn: 0.5, coded: 3.0}), Outcome(latencies={drawn: 0.75})
    assert Fit(1, 1, (both, alone)).slowest_s(0.99) == 3.0
    assert Fit(1, 1, (both, alone)).quantile_s(0.99) == 0.75
    assert Fit(1, 1, (alone,)).slowest_s(0.99) == 0.75
    assert Fit(1, 1, (alone,)).tokenize_s(0.99) is None
    assert Fit(1, 1, (Outcome(latencies={coded: 3.0}),)).slowest_s(0.99) == float("inf")
    # The first sequence misses it, so that there is no second.
    wish = replace(WISH, rate=1.0, steps=2, tokenize_rate=1.3 * tokenize_capacity(FRUIT), requests=10)
    fit = evaluate(wish, FRUIT, 1, p99_s=1.0)
    assert len(fit.outcomes) == 1
    assert fit.quantile_s(0.99) < 1.0 < fit.slowest_s(0.99)


def test_far_more_that_tokenize_shorten_the_time_that_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "_TOKENIZED", 1000)
    monkeypatch.setattr(sizing, "_TOKENIZED_EACH", 5)
    options = ("--rate", "2/s", "--steps", "2", "--workers", "1", "--requests", "200")
    values, output = both_of(*options, "--tokenize", "40/s")
    assert values["simulated_requests"] == 50
    assert re.search(r"^simulated +50 requests that draw with each seed, not 200: ", output, re.MULTILINE)
    for usual in (values_of(*options), values_of(*options, "--tokenize", "10/s")):
        assert usual["simulated_requests"] == 200
    assert "simulated  " not in run_plan(*options)


def test_requests_of_two_kinds_fill_what_those_of_each_fill_alone() -> None:
    # One result is large and the other small: their mean would be written twice.
    drawing = Flow(rate=300.0, result_bytes=100_000.0)
    tokenizing = Flow(rate=700.0, result_bytes=1000.0, payload_bytes=12_000.0, open_jobs=40.0)
    nobody = replace(LOAD, workers=0, waiting=0.0)
    both, one, other = (
        replace(nobody, flows=flows) for flows in ((drawing, tokenizing), (drawing,), (tokenizing,))
    )
    idle = share("Redis", replace(nobody, flows=()))
    assert share("Redis", both) + idle == pytest.approx(share("Redis", one) + share("Redis", other))
    for name in ("each gateway", "disk", "network"):
        assert share(name, both) == pytest.approx(share(name, one) + share(name, other)), name
    for number in range(2):
        of_each = [memory_bytes(replace(load, kept=0.5), PARTS)[number] for load in (both, one, other)]
        assert of_each[0] == pytest.approx(of_each[1] + of_each[2])
    # A picture to tokenize is written once, crosses the network twice, and stays until its job ends.
    without = replace(other, flows=(replace(tokenizing, payload_bytes=0.0),))
    assert share("disk", other) - share("disk", without) == pytest.approx(700 * 12_000 / 125e6)
    bits = 8 * 700 * 12_000 * PARTS.byte_bytes / 2
    assert share("network", other) - share("network", without) == pytest.approx(bits / 1e10)
    assert memory_bytes(other, PARTS)[0] - memory_bytes(without, PARTS)[0] == pytest.approx(40 * 12_000)
