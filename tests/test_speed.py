"""What the gateways make of the speeds that workers announce."""

import pytest

from models.sampling_config import SamplingConfig
from models.schedule import plan_steps
from service.jobs.job import NewJob
from service.jobs.payloads import DetokenizeJob, GenerateJob, TokenizeJob
from service.jobs.speed import UNKNOWN_RETRY_S, Speed, cost_of


def announced(**changes: float | None) -> dict[str, float | None]:
    """A worker with 4 slots that draws 200 rows and codes 50 pictures in a second."""
    speed = {"rows_per_s": 200.0, "step_s": 0.01, "images_per_s": 50.0, "codec_s": 0.02}
    return {"slots": 4, "codec_images": 16, **speed, **changes}


def job(**changes: object) -> NewJob:
    fields = {"id": "a", "kind": "generate", "payload": b"", "fingerprint": "f", **changes}
    return NewJob(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["rows_per_s", "step_s"])
def test_one_worker_that_was_not_measured_makes_the_speed_of_all_unknown(name: str) -> None:
    speed = Speed.of([announced(), announced(**{name: None})])
    forecast = speed.forecast(job(cost=100))
    if name == "rows_per_s":
        assert forecast.rows_per_ms == 0
        assert forecast.run_ms == 500
        assert forecast.wait_ms(10**9) == 0
    else:
        assert forecast.run_ms == 500
        assert Speed.of([announced(rows_per_s=None, step_s=None)]).forecast(job(cost=100)).run_ms == 0


def test_workers_that_announce_nothing_are_no_speed() -> None:
    assert Speed.of([]).forecast(job()) == Speed().forecast(job())
    assert Speed.of([{"runtime": "noop"}]).forecast(job()) == Speed().forecast(job())


def test_a_fleet_is_as_fast_as_its_workers_together_and_a_job_as_its_fastest_one() -> None:
    speed = Speed.of([announced(), announced(rows_per_s=300.0)])
    forecast = speed.forecast(job(cost=600, rows=2))
    assert forecast.rows_per_ms == 0.5
    # 300 rows are 150 guided steps of 10 ms at least; the fastest worker needs 2 s for 600 rows.
    assert forecast.run_ms == 2000
    # 16 pictures without guidance at most.
    assert forecast.at_once == 16 * 300
    assert forecast.wait_ms(16 * 300 + 1000) == 2000


def test_the_codec_has_a_speed_of_its_own() -> None:
    forecast = Speed.of([announced()]).forecast(job(kind="tokenize", cost=5, rows=5))
    assert forecast.rows_per_ms == 0.05
    assert forecast.at_once == 16
    assert forecast.run_ms == 100


@pytest.mark.parametrize(
    ("waiting", "expected_s"),
    [((0, 0, 0), 1.0), ((1000, 1000, 0), 10.0), ((1000, 0, 1000), 20.0), ((10**9, 0, 0), 60.0)],
)
def test_retry_after_is_the_slower_of_the_two_backlogs(
    waiting: tuple[int, int, int], expected_s: float
) -> None:
    assert Speed.of([announced()]).retry_after_s(*waiting) == expected_s


def test_retry_after_of_an_unknown_speed_is_a_guess_unless_nothing_waits() -> None:
    assert Speed().retry_after_s(0, 0, 0) == 1.0
    assert Speed().retry_after_s(1, 0, 0) == UNKNOWN_RETRY_S
    assert Speed.of([announced(images_per_s=None)]).retry_after_s(200, 0, 0) == 1.0
    assert Speed.of([announced(images_per_s=None)]).retry_after_s(0, 0, 1) == UNKNOWN_RETRY_S


def test_the_cost_of_a_job_is_counted_in_network_rows() -> None:
    sampling = SamplingConfig(steps=12, guidance_interval=(0.25, 0.75), guidance_annealing="none")
    guided = sum(plan.guidance_scale != 0 for plan in plan_steps(sampling, 64))
    assert cost_of(GenerateJob((1, 2, 3), (4, 5, 6), sampling, "png")) == 3 * (12 + guided)
    assert cost_of(TokenizeJob(4, 8, b"")) == 4
    assert cost_of(DetokenizeJob(2, 8, b"")) == 2
