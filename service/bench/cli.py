"""`maskbit bench`: the commands that measure models and service."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from models.errors import InputError

BundleOption = Annotated[str, typer.Option(help="Bundled model, folder or hf://owner/name.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
RivalsOption = Annotated[
    str, typer.Option(help="Servers to compare with, of litserve, bentoml and ray, separated by commas.")
]


def bench_models(
    model: Annotated[
        str,
        typer.Argument(
            help="Bundle, or a published model's name for random weights, e.g. maskbit_generator_14bit."
        ),
    ] = "fruit",
    device: DeviceOption = "auto",
    runtimes: Annotated[
        str, typer.Option(help="Runtimes beside the published way, e.g. torch,torch:bf16,onnx.")
    ] = "torch",
    batches: Annotated[str, typer.Option(help="Batch sizes [1,8,64,256 on CUDA, 1,16 on a CPU].")] = "",
    steps: Annotated[
        str, typer.Option(help="Steps of whole pictures, or none [16,64 on CUDA, 16 on a CPU].")
    ] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Times that each is measured, in turns.")] = 3,
    clock: Annotated[str, typer.Option(help="wall, or cpu for processor time on a shared machine.")] = "wall",
    keep: Annotated[
        Path | None, typer.Option(help="Folder for the bundle with random weights, to export it; reused.")
    ] = None,
) -> None:
    """Speed of the runtimes beside the published way: tokenize, detokenize, a step, whole pictures."""
    from models.bench import bench
    from models.random_weights import open_or_make

    with open_or_make(model, keep) as bundle:
        for line in bench(
            bundle,
            device=device,
            runtimes=[name for name in runtimes.split(",") if name],
            batches=_numbers("--batches", batches),
            steps=() if steps == "none" else _numbers("--steps", steps) or None,
            rounds=rounds,
            clock=clock,
        ):
            typer.echo(line)


def bench_service(
    clients: Annotated[int, typer.Option(min=1, max=512, help="Clients beside the run with one.")] = 32,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one run.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each server, in turns.")] = 5,
    rivals: RivalsOption = "",
    durability: Annotated[
        bool, typer.Option(help="Also measure Redis with fsync each second and without a file.")
    ] = True,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Folder of the other servers' environments [~/.cache/maskbit/rivals].")
    ] = None,
) -> None:
    """Overhead and throughput of gateway, queue and worker around a runtime that does nothing."""
    from service.bench.rivals.environment import default_cache_dir
    from service.bench.rivals.rival import rivals_named
    from service.bench.service import bench_service as bench

    _quiet()
    for line in bench(
        clients=clients,
        seconds=seconds,
        rounds=rounds,
        durabilities=("always", "everysec", "off") if durability else ("always",),
        rivals=rivals_named(rivals),
        cache_dir=cache_dir or default_cache_dir(),
    ):
        typer.echo(line)


def bench_abuse(
    attacks: Annotated[str | None, typer.Option(help="Which ones, separated by commas [all].")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one run, alone or attacked.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each attack.")] = 2,
) -> None:
    """What slow, stalled, idle and flooding clients cost a good one."""
    from service.bench.abuse import attacks_named
    from service.bench.abuse import bench_abuse as bench

    _quiet()
    for line in bench(attacks=attacks_named(attacks), seconds=seconds, rounds=rounds):
        typer.echo(line)


def bench_load(
    bundle: BundleOption = "fruit",
    runtime: Annotated[str, typer.Option(help="auto, torch, onnx, tensorrt, triton or noop.")] = "auto",
    device: DeviceOption = "auto",
    slots: Annotated[int, typer.Option(min=1, help="Pictures drawn at the same time.")] = 16,
    requests: Annotated[int, typer.Option(min=1, help="Requests of each run.")] = 200,
    load: Annotated[
        float, typer.Option(min=0.01, max=2, help="What arrives, as a share of the saturated engine's speed.")
    ] = 0.7,
    limit: Annotated[
        float, typer.Option(min=1, help="A request is good within so many times its time alone.")
    ] = 5.0,
    service: Annotated[bool, typer.Option(help="The same through HTTP and queue.")] = False,
) -> None:
    """Step-level batching against the batching of whole requests, mixed over 8, 16, 32 and 64 steps."""
    from service.bench.load import bench_load as bench

    _quiet()
    for line in bench(
        bundle,
        runtime_name=runtime,
        device=device,
        slots=slots,
        requests=requests,
        share=load,
        limit=limit,
        through_service=service,
    ):
        typer.echo(line)


def bench_redis(
    pictures: Annotated[int, typer.Option(min=1, help="Pictures of each run.")] = 1000,
    clients: Annotated[int, typer.Option(min=1, max=512, help="Clients beside the run with one.")] = 32,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs of each kind that wait.")] = 500,
) -> None:
    """Commands that Redis carries out for a picture, and the memory of a waiting job."""
    from service.bench.redis_cost import bench_redis as bench

    _quiet()
    for line in bench(pictures=pictures, clients=clients, jobs=jobs):
        typer.echo(line)


def bench_steps(
    bundle: BundleOption = "fruit",
    runtime: Annotated[str, typer.Option(help="auto, torch, onnx, tensorrt or triton.")] = "auto",
    device: DeviceOption = "auto",
    slots: Annotated[int, typer.Option(min=1, max=1024, help="Pictures drawn at the same time.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each size; their median counts.")] = 10,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of the run around no model.")] = 5.0,
    out: Annotated[Path | None, typer.Option(help="File for maskbit plan --bench.")] = None,
) -> None:
    """How long a worker's steps, decoding and tokenizing take, by batch size."""
    from service.bench.steps import bench_steps as bench

    _quiet()
    for line in bench(
        bundle, runtime_name=runtime, device=device, slots=slots, rounds=rounds, seconds=seconds, out=out
    ):
        typer.echo(line)


def bench_parts(
    requests: Annotated[int, typer.Option(min=10, help="Requests of each kind.")] = 3000,
    clients: Annotated[int, typer.Option(min=1, max=512, help="Clients at the same time.")] = 32,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs that wait.")] = 500,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of each run without requests.")] = 5.0,
    out: Annotated[Path | None, typer.Option(help="File for maskbit plan --parts.")] = None,
) -> None:
    """Processor time, bytes and memory of Redis and the gateway for a request, a worker, a gateway."""
    from service.bench.parts import bench_parts as bench

    _quiet()
    for line in bench(requests=requests, clients=clients, jobs=jobs, seconds=seconds, out=out):
        typer.echo(line)


def bench_plan(
    workers: Annotated[str, typer.Option(help="Paced workers of each run.")] = "1,3",
    loads: Annotated[str, typer.Option(help="Percent of the simulated capacity.")] = "50,80",
    requests: Annotated[int, typer.Option(min=1, help="Requests of each run with paced workers.")] = 400,
    model_requests: Annotated[int, typer.Option(min=0, help="And with the model; 0 leaves it out.")] = 150,
    bundle: BundleOption = "fruit",
    seed: Annotated[int, typer.Option(min=0, help="Of the arrivals.")] = 0,
) -> None:
    """Latencies that maskbit plan predicts beside those of the real service under the same arrivals."""
    from service.bench.plan_check import bench_plan as bench

    _quiet()
    for line in bench(
        bundle=bundle,
        workers=_numbers("--workers", workers),
        loads=[share / 100 for share in _numbers("--loads", loads)],
        requests=requests,
        model_requests=model_requests,
        seed=seed,
    ):
        typer.echo(line)


def bench_soak(
    requests: Annotated[int, typer.Option(min=1, help="Requests in all.")] = 100_000,
    clients: Annotated[int, typer.Option(min=1, max=512, help="Clients at the same time.")] = 32,
) -> None:
    """Memory of gateway, worker and Redis over many requests."""
    from service.bench.soak import bench_soak as bench

    _quiet()
    for line in bench(requests=requests, clients=clients):
        typer.echo(line)


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",") if word]
    except ValueError:
        numbers = [0]
    if any(number < 1 for number in numbers):
        raise InputError(f"{option} is {text!r}; it is a list of whole numbers of at least 1, such as 1,8,64")
    return numbers


def _quiet() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
