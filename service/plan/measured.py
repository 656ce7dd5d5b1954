"""The built-in numbers, all of them measured, on the hardware that they name. No GPU was at hand."""

from __future__ import annotations

from models.runtime.base import CPU_BUCKETS
from models.sampling_config import SamplingConfig
from service.plan.part_costs import PartCosts
from service.plan.step_times import StepTimes

_HARDWARE = "2 cores of an AMD EPYC (Zen 5), no GPU; Python 3.11, torch 2.13.0"

FRUIT = StepTimes(
    hardware=_HARDWARE,
    model="fruit",
    runtime="torch fp32 on cpu",
    sampling=SamplingConfig(
        steps=16,
        guidance_scale=5.0,
        guidance_annealing="linear",
        guidance_pow=1.0,
        guidance_cutoff=1.5,
        temperature=0.9,
        noise_temperature=8.0,
    ),
    slots=16,
    buckets=CPU_BUCKETS,
    step_s={
        1: 0.008369,
        2: 0.01479,
        3: 0.02098,
        4: 0.02733,
        6: 0.04008,
        8: 0.05252,
        12: 0.07905,
        16: 0.1206,
        24: 0.1547,
        32: 0.2666,
    },
    decode_s={
        1: 0.006284,
        2: 0.01041,
        3: 0.01321,
        4: 0.0165,
        6: 0.02664,
        8: 0.03077,
        12: 0.05466,
        16: 0.06814,
    },
    encode_s={
        1: 0.003057,
        2: 0.004265,
        3: 0.005866,
        4: 0.007565,
        6: 0.01034,
        8: 0.01312,
        12: 0.01878,
        16: 0.02437,
    },
    file_s=0.000694,
    file_bytes=7321,
    service_s=0.00215,
    source="measured by `maskbit bench steps --bundle fruit --runtime torch`",
)

PARTS = PartCosts(
    hardware=f"{_HARDWARE}, Redis 7.0.15",
    source="measured by `maskbit bench parts`",
    request_commands=2.44,
    request_inside=33.6,
    request_redis_s=0.000211,
    byte_redis_s=6.76e-09,
    request_gateway_s=0.000657,
    byte_gateway_s=9.39e-09,
    request_bytes=5.67e03,
    byte_bytes=2.02,
    waiting_bytes=2.19e03,
    worker_commands=7,
    worker_redis_s=0.00049,
    gateway_commands=8.4,
    gateway_redis_s=0.00071,
    reader_redis_s=8.01e-08,
    announce_redis_s=1.93e-05,
    announce_each_redis_s=1.97e-06,
    look_gateway_s=4.15e-06,
    look_redis_s=3.47e-07,
)
