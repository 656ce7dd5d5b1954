"""The simulated service against queueing theory, and against what must hold for any service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sampling_config import SamplingConfig
from service.plan.outcome import Outcome
from service.plan.requests import Request, poisson, rows_of_picture, sampling_of
from service.plan.simulation import Scene, simulate
from service.plan.step_times import StepTimes

GUIDED = SamplingConfig(steps=4, guidance_scale=3.0, guidance_annealing="none")
# One picture at a time, 0.25 s a step, and nothing around it.
SINGLE = StepTimes(
    hardware="none",
    model="none",
    runtime="none",
    sampling=GUIDED,
    slots=1,
    buckets=(1, 2, 4, 8, 16, 32),
    step_s={2: 0.25},
    decode_s={1: 1e-9},
    encode_s={1: 0.1, 16: 1.0},
    file_s=0.0,
    file_bytes=0,
    pixels_bytes=0,
    tokens_bytes=0,
    service_s=0.0,
    source="test",
)
# A batch costs little more than a picture.
BATCHED = replace(
    SINGLE, slots=8, step_s={2: 0.05, 16: 0.12}, decode_s={1: 0.02, 8: 0.08}, file_s=0.01, service_s=0.006
)


def run(times: StepTimes, workers: int, requests: Sequence[Request], **more: float) -> Outcome:
    scene = Scene(times=times, workers=workers, slots=times.slots, open_jobs=10**9, deadline_s=1e6)
    return simulate(replace(scene, **more), requests)  # type: ignore[arg-type]


def arrivals(count: int, rate: float, *, tokenize: float = 0.0, seed: int = 3) -> list[Request]:
    return poisson(count, rate, images=1, steps=4, tokenize_rate=tokenize, seed=seed)


def test_a_request_alone_takes_the_sum_of_its_parts() -> None:
    outcome = run(BATCHED, 1, [Request(0, 5.0, 1, 4)])
    assert outcome.quantile_s(0.5) == pytest.approx(4 * 0.05 + 0.02 + 0.01 + 0.006)
    assert outcome.busy_s == pytest.approx([0.22])


def test_two_pictures_of_one_request_share_every_step_and_have_their_files_made_in_one_thread() -> None:
    outcome = run(BATCHED, 1, [Request(0, 0.0, 2, 4)])
    decode_s = 0.02 + (0.08 - 0.02) / 7
    assert outcome.quantile_s(0.5) == pytest.approx(4 * BATCHED.step(4) + decode_s + 2 * 0.01 + 0.006)


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_one_picture_at_a_time_waits_as_the_formula_of_md1_says(load: float) -> None:
    # Pollaczek-Khinchine for a constant time of service s: a wait of load * s / (2 (1 - load)).
    outcome = run(SINGLE, 1, arrivals(15_000, rate=load))
    expected = 1 + load / (2 * (1 - load))
    assert fmean(outcome.latencies.values()) == pytest.approx(expected, rel=0.04)
    assert outcome.busy == pytest.approx(load, rel=0.03)


def test_the_share_that_waits_for_one_server_is_its_load() -> None:
    outcome = run(SINGLE, 1, arrivals(6000, rate=0.5))
    waited = [seconds > 1.0001 for seconds in outcome.latencies.values()]
    assert fmean(waited) == pytest.approx(0.5, abs=0.02)


def test_several_servers_fill_in_the_order_of_arrival() -> None:
    # Regular arrivals, each just when a server is free again: nobody waits, all servers are always busy.
    requests = [Request(number, number / 4, 1, 4) for number in range(400)]
    outcome = run(SINGLE, 4, requests)
    assert list(outcome.latencies.values()) == pytest.approx([1.0] * 400)
    assert outcome.busy == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("rate", [2.0, 9.0])
def test_littles_law_holds(workers: int, rate: float) -> None:
    outcome = run(BATCHED, workers, arrivals(2000, rate * workers, tokenize=1.0))
    assert outcome.lost == 0
    # A request is an open job from its acceptance, one of the three exchanges after its arrival.
    inside = [seconds - BATCHED.service_s / 3 for seconds in outcome.latencies.values()]
    assert outcome.mean_open == pytest.approx(len(inside) / outcome.seconds * fmean(inside), rel=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.floats(0.5, 12.0), st.integers(1, 4), st.integers(0, 1000))
def test_more_workers_answer_sooner_and_more_requests_later(rate: float, workers: int, seed: int) -> None:
    def mean(rate: float, workers: int) -> float:
        # The same sequence, only denser.
        return fmean(run(BATCHED, workers, arrivals(400, rate, seed=seed)).latencies.values())

    base = mean(rate, workers)
    # Batches make single requests a little faster or slower; the means must not turn around.
    assert mean(rate, workers + 1) <= 1.02 * base
    assert mean(1.5 * rate, workers) >= base / 1.02


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_every_request_is_answered_once_whatever_comes(workers: int, images: int, steps: list[int]) -> None:
    requests = [Request(number, 0.1 * number, images, count) for number, count in enumerate(steps)]
    outcome = run(BATCHED, workers, requests)
    assert set(outcome.latencies) == set(requests)
    rows = sum(images * count for count in steps)
    assert outcome.pictures_stepped == rows
    assert outcome.calls <= rows
    alone = [count * 0.05 + 0.02 for count in steps]
    assert min(outcome.latencies[one] - alone[one.number] for one in requests) > 0


def test_no_worker_is_faster_than_full_batches_allow() -> None:
    requests = [Request(number, 0.0, 1, 4) for number in range(800)]
    outcome = run(BATCHED, 2, requests)
    full = 2 * 8 / (4 * BATCHED.step(16) + BATCHED.decode(8))
    rate = len(requests) / outcome.seconds
    assert rate == pytest.approx(full, rel=0.05)
    assert rate <= 1.001 * full
    assert outcome.pictures_per_step == pytest.approx(8, rel=0.03)


def test_drawing_and_coding_share_a_worker_in_halves() -> None:
    drawing = [Request(number, 0.0, 1, 4) for number in range(60)]
    coding = [Request(100 + number, 0.0) for number in range(2000)]
    outcome = run(SINGLE, 1, [*drawing, *coding])
    last_drawn = max(seconds for one, seconds in outcome.latencies.items() if one.generate)
    assert (outcome.most_tokenizing, outcome.most_open) == (2000, 2060)
    # 60 s of drawing while there was coding all the time.
    assert last_drawn == pytest.approx(120, rel=0.05)


def test_what_cannot_be_in_time_is_refused_and_what_is_late_expires() -> None:
    outcome = run(SINGLE, 1, arrivals(600, rate=2.0), deadline_s=5.0)
    assert outcome.turned_away > 100
    assert outcome.answered + outcome.turned_away + outcome.expired == 600
    # A worker looks before each step.
    assert max(outcome.latencies.values()) <= 5.0 + 0.25 + 1e-6
    # Half of what came could be drawn, and some of that was given up half-way.
    assert 150 < outcome.answered < 300
    assert outcome.expired > 10


def test_a_full_queue_refuses() -> None:
    requests = [Request(number, 0.0, 1, 4) for number in range(50)]
    outcome = run(SINGLE, 1, requests, open_jobs=20)
    assert (outcome.most_open, outcome.turned_away, outcome.answered) == (20, 30, 20)


def test_rows_are_counted_as_the_schedule_counts_them() -> None:
    sampling = SamplingConfig(guidance_scale=7.1)
    # Cosine annealing leaves the first of 64 steps without guidance.
    assert rows_of_picture(sampling_of(sampling, 64)) == 127
    assert rows_of_picture(replace(sampling, guidance_scale=0.0, steps=64)) == 64


def test_the_same_seed_brings_the_same_arrivals_with_and_without_other_work() -> None:
    alone, together = arrivals(200, 5.0), arrivals(200, 5.0, tokenize=20.0)
    assert [one for one in together if one.generate] == alone
    coded = [one for one in together if not one.generate]
    assert len(coded) == pytest.approx(20 * alone[-1].at_s, rel=0.15)
    assert len({one.number for one in together}) == len(together)
