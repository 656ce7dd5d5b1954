"""`maskbit plan`: how many workers, what saturates first, and what it says to wrong options."""

from __future__ import annotations

import os
import random
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InputError
from models.sampling_config import SamplingConfig
from service.jobs.job import QueueLimits
from service.plan import saturation
from service.plan.fit import Fit
from service.plan.load import INLINE_BYTES
from service.plan.measured import FRUIT, PARTS
from service.plan.progress import Progress
from service.plan.saturation import FULL, commands, gateways_needed, memory_bytes, parts_of
from service.plan.sizing import FULL as WORKERS_FULL
from service.plan.sizing import (
    MOST_FULL,
    SEEDS,
    alone_s,
    capacity,
    evaluate,
    needed,
    size,
)
from service.plan.step_times import StepTimes
from tests.documents import maskbit_lines, read, rows, section
from tests.plan_harness import DRAWING, LOAD, WISH, both_of, run_plan, share, values_of

GPU = ("--step-times", "2:9ms,32:30ms", "--decode-times", "1:6ms,16:60ms", "--picture-bytes", "100kB")
ASSUMED = StepTimes.assumed({2: 0.009, 32: 0.03}, {1: 0.006, 16: 0.06}, SamplingConfig(), 16)
# Fewer requests than a plan takes make its p99 less certain: enough for the two cases of the short form.
FRESH_CASES = int(os.environ.get("MASKBIT_PLAN_CASES", "2"))
FRESH_REQUESTS = 4000 if FRESH_CASES > 2 else 1500


def test_the_plan_of_the_issue_says_everything_that_it_asks_for() -> None:
    load = ("--rate", "50/s", "--steps", "64", "--p99", "2s", "--requests", "300", *GPU)
    values, output = both_of(*load, "--price-per-hour", "2.5")
    for pattern in (
        r"^50 requests/s of 1 picture, 64 steps \(127 forward passes\), 16 slots, p99 within 2 s$",
        r"^step times: assumed, by --step-times and --decode-times$",
        r"^part costs: measured by `maskbit bench parts`; .+",
        r"^latency +p50 [\d.]+ s, p99 [\d.]+ s \([\d.]+ to [\d.]+ s with seeds 0 to 2\); a request alone ",
        r"^GPU share +busy \d+% of the time, [\d.]+ pictures a step: \d+% of the speed with full batches$",
        r"^Redis +[\d,]+ commands/s sent, [\d,]+/s inside scripts$",
        r"^Redis memory +[\d.]+ MB for jobs that wait and results on their way; none is kept \(",
        r"^cost +[\d.]+ for 1,000 pictures at 2.5 an hour$",
        r"^Redis, one thread +[\d.]+% of 1 core +ok ",
        r"^each gateway +[\d.]+% of 1 core +ok ",
        r"^network of Redis +[\d.]+% of 10 Gbit/s +ok ",
        r"^disk of Redis +[\d.]+% of 125 MB/s +ok ",
    ):
        assert re.search(pattern, output, re.MULTILINE), (pattern, output)
    # The numbers for programs are those for people.
    assert f"workers          {values['workers']} " in output
    assert f"p99 {values['p99_s']:.3g} s" in output
    assert values["p50_s"] <= values["p99_s"] == max(values["p99_s_by_seed"]) <= 2.0
    assert len(values["p99_s_by_seed"]) == SEEDS
    # Workers by their price, over the pictures of an hour.
    cost = 1000 * values["workers"] * 2.5 / (50 * 3600)
    assert values["price_per_1000_pictures"] == pytest.approx(cost)
    assert values["step_times"]["source"].startswith("assumed")
    assert "no GPU" in values["part_costs"]["hardware"]


def test_the_answer_is_the_smallest_that_suffices() -> None:
    wish = replace(WISH, requests=500)
    fit = size(wish, FRUIT, 3.0)
    assert fit.quantile_s(0.99) <= 3.0
    fewer = evaluate(wish, FRUIT, fit.workers - 1)
    full_speed = needed(wish, FRUIT) / fewer.workers
    assert fewer.quantile_s(0.99) > 3.0 or full_speed > MOST_FULL


@pytest.mark.parametrize("case", range(FRESH_CASES))
def test_the_goal_is_met_with_other_arrivals_too(case: int) -> None:
    numbers = random.Random(case)
    times = numbers.choice((FRUIT, ASSUMED))
    wish = replace(
        WISH, rate=numbers.uniform(5, 60), steps=numbers.choice((4, 8, 12)), requests=FRESH_REQUESTS
    )
    goal = numbers.uniform(1.2, 6) * alone_s(wish, times)
    fit = size(wish, times, goal)
    assert wish.rate <= MOST_FULL * fit.workers * capacity(wish, times) * (1 + 1e-9)
    fresh = evaluate(replace(wish, seed=1000 + case), times, fit.workers)
    # One sequence in many has a jam that lasts.
    assert median(fresh.quantiles_s(0.99)) <= 1.2 * goal
    assert fresh.lost <= 0.002


def test_what_the_capacity_is_does_not_hang_on_the_seed() -> None:
    wish = replace(WISH, steps=64)
    other = replace(wish, seed=77, requests=100)
    assert capacity(wish, FRUIT) == capacity(other, FRUIT)


@pytest.mark.parametrize(("rate", "factor"), [(1.0, 2.5), (12.0, 1.3)])
def test_more_load_or_less_time_never_needs_fewer_workers(rate: float, factor: float) -> None:
    wish = replace(WISH, rate=rate, requests=300)
    goal = 8 * alone_s(wish, FRUIT)
    fewest = size(wish, FRUIT, goal).workers
    assert size(replace(wish, rate=factor * rate), FRUIT, goal).workers >= fewest
    assert size(wish, FRUIT, goal / factor).workers >= fewest


def test_a_pool_of_more_workers_waits_no_longer_than_the_one_that_is_simulated() -> None:
    wish, per_worker = replace(WISH, requests=500), 0.7 * capacity(WISH, FRUIT)
    few = evaluate(replace(wish, rate=2 * per_worker), FRUIT, 2)
    many = evaluate(replace(wish, rate=8 * per_worker), FRUIT, 8)
    shared = evaluate(replace(wish, rate=800 * per_worker), FRUIT, 800)
    assert many.quantile_s(0.99) <= few.quantile_s(0.99)
    assert shared.quantile_s(0.99) == pytest.approx(many.quantile_s(0.99))
    assert (shared.pool, shared.most_open) == (8, 100 * many.most_open)


def test_the_capacity_is_what_the_simulation_reaches() -> None:
    rate = 3 * capacity(WISH, FRUIT)
    saturated = evaluate(replace(WISH, rate=rate, deadline_s=1e6, requests=500), FRUIT, 1)
    reached = fmean(outcome.answered / outcome.seconds for outcome in saturated.outcomes)
    # Which steps meet in a batch goes on as it began, and decides how full the batches are.
    assert reached == pytest.approx(capacity(WISH, FRUIT), rel=0.1)


def test_a_load_beyond_the_capacity_is_called_an_overload_and_one_just_below_it_full() -> None:
    one = capacity(WISH, FRUIT)
    options = ("--steps", "8", "--workers", "1", "--requests", "300")
    output = run_plan("--rate", "100/s", "--deadline", "5s", *options)
    assert re.search(r"^OVERLOAD .+ waiting grows without an end$", output, re.MULTILINE)
    assert re.search(r"^unanswered +[1-9]\d\.\d+% \([1-9]\d* refused, \d+ late\)$", output, re.MULTILINE)
    full = run_plan("--rate", f"{(WORKERS_FULL + 0.02) * one:.3f}/s", *options)
    assert re.search(r"^FULL +over 90% .+; workers are planned up to 80%$", full, re.MULTILINE)
    room = run_plan("--rate", f"{MOST_FULL * one:.3f}/s", *options)
    assert "OVERLOAD" not in room + full
    assert "FULL" not in room


def test_a_plan_that_takes_its_time_says_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    progress = Progress(heard.append)
    progress.tell("first")
    assert heard == []
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s + 10)
    progress.tell("second")
    [line] = heard
    assert re.fullmatch(r"simulating for 10 s: second", line)


def test_at_a_thousand_workers_redis_is_full_and_shards_are_the_knob() -> None:
    options = ("--rate", "6000/s", "--steps", "64", "--workers", "1000", "--requests", "100", *GPU)
    one, cells = values_of(*options), values_of(*options, "--shards", "20", "--gateways", "60")
    assert one["open_jobs_setting"] == 2 * one["open_jobs"]
    assert cells["open_jobs_setting"] == pytest.approx(one["open_jobs_setting"] / 20, abs=2)
    parts = one["parts"]
    assert parts["Redis, one thread"]["share"] > 1
    assert "shards" in parts["Redis, one thread"]["knob"]
    assert parts["each gateway"]["share"] <= FULL
    assert all(part["share"] <= FULL for part in cells["parts"].values())
    output = run_plan(*options)
    assert re.search(r"^Redis, one thread +[\d.]+% of 1 core +FULL  shards", output, re.MULTILINE)
    assert re.search(r"^  announcements +[\d.]+%$", output, re.MULTILINE)
    assert re.search(r"^open jobs +[\d,]+ at once: MASKBIT_OPEN_JOBS=\d+ ", output, re.MULTILINE)


# -- parts ---------------------------------------------------------------------------------------------------


def test_shards_divide_the_work_of_redis_and_gateways_that_of_the_gateways() -> None:
    halved = replace(LOAD, shards=2)
    # Workers look after each other, so that half as many in each shard cost less than half.
    assert share("Redis", halved) < share("Redis", LOAD) / 1.99
    assert share("network", halved) == pytest.approx(share("network", LOAD) / 2)
    assert share("each gateway", replace(LOAD, gateways=4)) < share("each gateway", LOAD)
    # Each gateway looks at all workers of its shard.
    assert share("Redis", replace(LOAD, gateways=40)) > share("Redis", LOAD)
    assert share("network", replace(LOAD, network_bits_s=2e10)) == pytest.approx(share("network", LOAD) / 2)


@given(st.floats(1, 1e5), st.integers(1, 2000), st.integers(1, 8))
def test_as_many_gateways_as_are_needed_are_not_full_and_fewer_are(
    rate: float, workers: int, shards: int
) -> None:
    load = replace(LOAD, flows=(replace(DRAWING, rate=rate),), workers=workers, shards=shards)
    gateways = gateways_needed(load, PARTS)
    assert share("each gateway", replace(load, gateways=gateways)) <= FULL + 1e-9
    assert gateways % shards == 0
    if gateways > shards:
        assert share("each gateway", replace(load, gateways=gateways - shards)) > FULL - 1e-9


def test_commands_and_memory_grow_with_what_causes_them() -> None:
    sent, inside = commands(LOAD, PARTS)
    idle = 20 * PARTS.worker_commands + 2 * PARTS.gateway_commands
    assert sent == pytest.approx(100 * PARTS.request_commands + idle)
    assert inside == pytest.approx(100 * PARTS.request_inside)
    passing, kept = memory_bytes(LOAD, PARTS)
    more, _ = memory_bytes(replace(LOAD, waiting=1010.0), PARTS)
    assert more - passing == pytest.approx(1000 * PARTS.waiting_bytes)
    assert kept == 0
    assert [part.share for part in parts_of(LOAD, PARTS)] == sorted(
        (part.share for part in parts_of(LOAD, PARTS)), reverse=True
    )
    assert all(re.search(r"ok|FULL|%", line) for line in saturation.lines_of(parts_of(LOAD, PARTS)))


def test_a_result_is_written_twice_up_to_the_size_that_the_inbox_takes() -> None:
    [written] = re.findall(
        r"^local INLINE_BYTES = (\d+)$", read("service/jobs/lua/terminate.lua"), re.MULTILINE
    )
    assert int(written) == INLINE_BYTES
    small = replace(DRAWING, result_bytes=float(INLINE_BYTES))
    large = replace(DRAWING, result_bytes=INLINE_BYTES + 1.0)
    for flow, copies in ((small, 2), (large, 1)):
        load = replace(LOAD, flows=(flow,))
        bytes_s = flow.rate * (PARTS.request_disk_bytes + copies * flow.result_bytes)
        assert share("disk of Redis", load) == pytest.approx(bytes_s / 125e6)
        assert share("disk of Redis", replace(load, shards=2)) == pytest.approx(bytes_s / 125e6 / 2)
        passing, _ = memory_bytes(replace(load, waiting=0.0), PARTS)
        assert passing == pytest.approx(copies * flow.rate * flow.result_bytes)


def test_results_that_are_kept_fill_the_memory_and_their_number_has_a_limit() -> None:
    load = replace(LOAD, kept=0.1)
    _, kept = memory_bytes(load, PARTS)
    # A tenth of 100 a second for ten minutes.
    assert kept == pytest.approx(6000 * (50_000 + PARTS.waiting_bytes))
    assert share("kept results", load) == pytest.approx((6000 + 50) / QueueLimits.results)
    assert share("kept results", replace(load, result_ttl_s=60.0)) == pytest.approx(650 / QueueLimits.results)
    assert "kept results" not in {part.name for part in parts_of(LOAD, PARTS)}
    options = ("--rate", "100/s", "--workers", "60", "--requests", "100", "--keep-results", "0.5")
    output = run_plan(*options, "--steps", "1")
    assert re.search(r"^kept results +3\d\d\.\d% of 10,000 jobs +FULL +a shorter", output, re.MULTILINE)
    assert re.search(r"^Redis memory .+; [\d,.]+ MB for results that are kept 600 s$", output, re.MULTILINE)
    assert "kept 30 s" in run_plan(*options, "--steps", "1", "--result-ttl", "30s")


def test_a_shard_waits_like_a_service_of_its_own() -> None:
    load = ("--steps", "16", "--requests", "500", "--p99", "4s")
    one = values_of("--rate", "2/s", *load)
    eight = values_of("--rate", "16/s", "--shards", "8", *load)
    assert eight["workers"] == 8 * one["workers"]
    assert eight["p99_s_by_seed"] == one["p99_s_by_seed"]
    assert eight["of_full_speed"] == pytest.approx(one["of_full_speed"])
    assert eight["open_jobs_setting"] == one["open_jobs_setting"]


# -- wrong options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "50", "--p99", "2s"], "--rate is '50'; it is a number with a unit, such as 50/s"),
        (["--rate", "50/s", "--p99", "2"], "--p99 is '2'; it is a number with a unit, such as 2s"),
        (["--rate", "50/s"], "give --p99, for the fewest workers, or else --workers"),
        (["--rate", "50/s", "--p99", "2s", "--workers", "3"], "give --p99, for the fewest workers, or else"),
        (["--rate", "1/s", "--p99", "10ms"], r"--p99 is 0.01 s, but one request alone takes [\d.]+ s"),
        (
            ["--rate", "1/s", "--workers", "1", "--deadline", "9ms"],
            "--deadline is 0.009 s, but one request",
        ),
        (
            ["--rate", "1/s", "--p99", "9s", "--deadline", "5s"],
            "--p99 is 9 s, and --deadline 5 s, after",
        ),
        (
            ["--rate", "1/s", "--workers", "30", "--shards", "8"],
            "--workers is 30, and --shards 8: each",
        ),
        (["--rate", "1/s", "--workers", "3", "--shards", "8"], "--workers is 3, and --shards 8: each"),
        (
            ["--rate", "1/s", "--p99", "9s", "--step-times", "32:9ms,2:30ms", "--decode-times", "1:6ms"],
            "--step-times is '32:9ms,2:30ms'; a larger size takes at least as long",
        ),
        (["--rate", "1/s", "--p99", "9s", "--slots", "64"], "64 slots make steps of up to 128 rows, and"),
        (["--rate", "1/s", "--p99", "9s", "--step-times", "2:9ms"], "--step-times and --decode-times belong"),
        (["--rate", "1/s", "--p99", "9s", "--step-times", "x"], "--step-times is 'x'; it is a list of sizes"),
        (["--rate", "1/s", "--p99", "9s", "--bench", "none.json"], "step times none.json cannot be read"),
        (["--rate", "1/s", "--p99", "9s", "--parts", "none.json"], "parts none.json cannot be read"),
        (["--rate", "1/s", "--p99", "9s", "--network", "10GB"], "--network is '10GB'"),
        (["--rate", "1/s", "--p99", "9s", "--disk", "1Gbit/s"], "--disk is '1Gbit/s'"),
        (["--rate", "1/s", "--p99", "9s", "--picture-bytes", "90"], "--picture-bytes is '90'"),
        (["--rate", "1/s", "--p99", "9s", "--tokenize", "0/s"], "--tokenize is '0/s'; it must be above 0"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        run_plan(*options)
    assert "\n" not in str(caught.value)


def test_a_goal_that_no_number_of_workers_reaches_is_refused() -> None:
    # One picture in a hundred meets one that is tokenized, however many workers there are.
    wish = replace(WISH, tokenize_rate=300.0, requests=20)
    with pytest.raises(InputError, match=r"^--p99 is .* but even of \d+ workers, with next to nothing to do"):
        size(wish, FRUIT, alone_s(wish, FRUIT) + 1e-4)


def test_times_that_were_assumed_have_none_of_tokenizing() -> None:
    with pytest.raises(InputError, match=r"\(assumed, .*\) have no times of tokenizing"):
        run_plan("--rate", "5/s", "--workers", "2", "--tokenize", "1/s", *GPU)


def test_a_file_of_step_times_takes_the_place_of_the_built_in_ones(tmp_path: Path) -> None:
    path = tmp_path / "faster.json"
    faster = {size: seconds / 10 for size, seconds in FRUIT.step_s.items()}
    replace(FRUIT, step_s=faster, hardware="another machine").save(path)
    options = ("--rate", "1/s", "--workers", "1", "--requests", "200")
    own, other = values_of(*options), values_of(*options, "--bench", str(path))
    assert other["p99_s"] < own["p99_s"]
    assert other["step_times"] == {"source": str(path), "hardware": "another machine"}


def test_a_fit_without_answers_is_never_good_enough() -> None:
    fit = evaluate(replace(WISH, deadline_s=0.001, requests=200), FRUIT, 1)
    assert isinstance(fit, Fit)
    assert fit.quantile_s(0.99) == float("inf") or fit.lost > 0.5


# -- docs/capacity.md ----------------------------------------------------------------------------------------


def test_the_story_of_a_thousand_workers_is_what_the_plan_says() -> None:
    text = section(read("docs/capacity.md"), "A thousand workers")
    [line] = [line for line in maskbit_lines(text) if line.startswith("maskbit plan ")]
    options = (*shlex.split(line)[2:], "--requests", "200")
    told = {cells[0]: cells[1:] for cells in rows(text) if len(cells) == 4}
    for column, shards in enumerate((1, 4, 10)):
        values = values_of(*options, "--shards", str(shards))
        parts = {name: part["share"] for name, part in values["parts"].items()}
        for title, part in (
            ("Redis, one thread", "Redis, one thread"),
            ("network of Redis, 10 Gbit/s", "network of Redis"),
            ("disk of Redis, 125 MB/s", "disk of Redis"),
        ):
            assert percent(told[title][column]) == pytest.approx(parts[part], rel=0.02, abs=0.006), title
        assert int(told["gateways for at most 70 % each"][column]) == values["gateways"]
        setting = int(told["`MASKBIT_OPEN_JOBS`"][column].replace(",", ""))
        # Of 200 requests fewer are open at once than of those of the command.
        assert values["open_jobs_setting"] <= setting <= 2 * values["open_jobs_setting"]


def percent(text: str) -> float:
    return float(text.removesuffix(" %")) / 100
