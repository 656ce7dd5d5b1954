"""What an answer says about the work behind it, from a worker's result to `usage`."""

import numpy as np
import pytest

from models.sampling_config import SamplingConfig
from service.gateway.rendering import usage_of
from service.jobs.job import JobView
from service.jobs.payloads import DetokenizeJob, GenerateJob, Pictures
from service.worker.finisher import result_of
from service.worker.task import Task

DONE = JobView.from_fields("a", {"state": b"done", "created": b"1", "started": b"2", "finished": b"3"})


@pytest.mark.parametrize(
    ("sampling", "passes"),
    [
        (SamplingConfig(steps=6, guidance_scale=0.0), 6),
        (SamplingConfig(steps=6, guidance_annealing="none"), 12),
        (SamplingConfig(steps=6, guidance_annealing="none", guidance_interval=(0.5, 1.0)), 9),
    ],
)
def test_usage_tells_the_forward_passes_of_each_picture(sampling: SamplingConfig, passes: int) -> None:
    grid = np.zeros((8, 8), dtype=np.int64)
    job = GenerateJob((0, 1), (5, 6), sampling, "tokens")
    pictures = Pictures.unpack(result_of(Task("a", job, grids={0: grid, 1: grid}), 2.5))
    usage = usage_of(DONE, pictures)
    assert (usage.steps, usage.forward_passes, usage.compute_ms) == (6, passes, 2.5)


def test_detokenize_costs_the_generator_nothing() -> None:
    grid, pixels = np.zeros((8, 8), dtype=np.int64), np.zeros((16, 16, 3), dtype=np.uint8)
    task = Task("a", DetokenizeJob(1, 8, b"", "png"), grids={0: grid}, pictures={0: pixels})
    usage = usage_of(DONE, Pictures.unpack(result_of(task, 1.0)))
    assert (usage.steps, usage.forward_passes) == (0, 0)
