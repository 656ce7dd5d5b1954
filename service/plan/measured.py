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
        1: 0.01002,
        2: 0.01606,
        3: 0.02252,
        4: 0.02913,
        6: 0.04219,
        8: 0.0564,
        12: 0.0814,
        16: 0.1082,
        24: 0.1676,
        32: 0.2742,
    },
    decode_s={
        1: 0.006024,
        2: 0.009239,
        3: 0.01287,
        4: 0.01663,
        6: 0.02392,
        8: 0.03138,
        12: 0.04563,
        16: 0.06055,
    },
    encode_s={
        1: 0.003925,
        2: 0.004888,
        3: 0.00645,
        4: 0.007979,
        6: 0.01096,
        8: 0.01431,
        12: 0.02019,
        16: 0.02631,
    },
    file_s=0.000765,
    file_bytes=6152,
    pixels_bytes=12312,
    tokens_bytes=1057,
    service_s=0.00246,
    source="measured by `maskbit bench steps --bundle fruit --runtime torch`",
)

PARTS = PartCosts(
    hardware=f"{_HARDWARE}, Redis 7.0.15",
    source="measured by `maskbit bench parts`",
    request_commands=2.41,
    request_inside=33.5,
    request_redis_s=0.00019,
    byte_redis_s=6.95e-09,
    request_gateway_s=0.00056,
    byte_gateway_s=9.39e-09,
    request_bytes=5.69e03,
    byte_bytes=2.02,
    request_disk_bytes=3.53e3,
    waiting_bytes=2.23e03,
    worker_commands=7.07,
    worker_redis_s=0.000414,
    gateway_commands=8.93,
    gateway_redis_s=0.000833,
    reader_redis_s=7.87e-08,
    announce_redis_s=1.54e-05,
    announce_each_redis_s=1.81e-06,
    look_gateway_s=3.58e-06,
    look_redis_s=3.11e-07,
)
