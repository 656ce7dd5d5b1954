"""Commands of the service."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

BundleOption = Annotated[
    str | None, typer.Option(help="Bundled model, folder or hf://owner/name [MASKBIT_BUNDLE].")
]
RedisOption = Annotated[str | None, typer.Option(help="redis://… or unix://… [MASKBIT_REDIS_URL].")]
HostOption = Annotated[str | None, typer.Option(help="Address to listen on [MASKBIT_HOST].")]
PortOption = Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on [MASKBIT_PORT].")]
RuntimeOption = Annotated[str | None, typer.Option(help="auto, torch or noop [MASKBIT_RUNTIME].")]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu or cuda [MASKBIT_DEVICE].")]
SlotsOption = Annotated[
    int | None, typer.Option(min=1, help="Pictures drawn at the same time [MASKBIT_SLOTS].")
]
StateOption = Annotated[Path | None, typer.Option(help="Folder of the embedded Redis [MASKBIT_STATE_DIR].")]


def _settings(**given: Any) -> Any:
    """Settings from the environment, overridden by the options that were given."""
    from pydantic import ValidationError

    from models.errors import ConfigError
    from service.settings import Settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return Settings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as exc:
        problem = exc.errors()[0]
        name = "_".join(map(str, problem["loc"]))
        raise ConfigError(f"setting {name} is {problem['input']!r}: {problem['msg']}") from exc


def serve(
    host: HostOption = None,
    port: PortOption = None,
    bundle: BundleOption = None,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    slots: SlotsOption = None,
    state_dir: StateOption = None,
    redis_url: RedisOption = None,
) -> None:
    """Start Redis, a worker and the gateway with its page, as one; Ctrl-C stops them cleanly."""
    settings = _settings(
        host=host,
        port=port,
        bundle=bundle,
        runtime=runtime,
        device=device,
        slots=slots,
        state_dir=state_dir,
        redis_url=redis_url,
    )
    from service.supervisor import serve as run

    run(settings, typer.echo)


def gateway(
    host: HostOption = None,
    port: PortOption = None,
    bundle: BundleOption = None,
    redis_url: RedisOption = None,
) -> None:
    """Start the HTTP gateway alone; it needs a Redis and, to answer, workers."""
    settings = _settings(host=host, port=port, bundle=bundle, redis_url=redis_url)
    from service.gateway.app import run_gateway
    from service.parent import end_with_parent

    end_with_parent()
    run_gateway(settings)


def worker(
    bundle: BundleOption = None,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    slots: SlotsOption = None,
    redis_url: RedisOption = None,
) -> None:
    """Start a worker alone; it needs a Redis."""
    settings = _settings(bundle=bundle, runtime=runtime, device=device, slots=slots, redis_url=redis_url)
    from service.parent import end_with_parent
    from service.worker.process import run_worker

    end_with_parent()
    run_worker(settings)


def bench_models(
    bundle: Annotated[str, typer.Option(help="Bundled model, folder or hf://owner/name.")] = "fruit",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 16,
    batch: Annotated[
        int, typer.Option(min=1, help="Pictures of the batch that is compared with one alone.")
    ] = 16,
) -> None:
    """Time per picture alone and in a batch; tokenize and detokenize."""
    from models.bench import bench

    for line in bench(bundle, device=device, steps=steps, batch=batch):
        typer.echo(line)


def bench_service(
    jobs: Annotated[int, typer.Option(min=1, help="Jobs of the throughput run.")] = 2000,
    clients: Annotated[int, typer.Option(min=1, max=512, help="Clients of the throughput run.")] = 32,
) -> None:
    """Overhead and throughput of gateway, queue and worker around a runtime that does nothing."""
    from service.bench import bench

    _settings()
    for line in bench(jobs=jobs, clients=clients):
        typer.echo(line)
