"""Commands of the service."""

from __future__ import annotations

import logging
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

BundleOption = Annotated[
    str | None, typer.Option(help="Bundled model, folder or hf://owner/name [MASKBIT_BUNDLE].")
]
BundlesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bundle",
        help="Bundled model, folder or hf://owner/name; once for each model [MASKBIT_BUNDLE, with commas].",
    ),
]
RedisOption = Annotated[
    str | None, typer.Option(help="redis://…, rediss://… or unix://… [MASKBIT_REDIS_URL].")
]
HostOption = Annotated[str | None, typer.Option(help="Address to listen on [MASKBIT_HOST].")]
PortOption = Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on [MASKBIT_PORT].")]
RuntimeOption = Annotated[
    str | None, typer.Option(help="auto, torch, onnx, tensorrt, triton or noop [MASKBIT_RUNTIME].")
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu or cuda [MASKBIT_DEVICE].")]
SlotsOption = Annotated[
    int | None, typer.Option(min=1, help="Pictures drawn at the same time [MASKBIT_SLOTS].")
]
LogOption = Annotated[
    str | None, typer.Option("--log-format", help="text or json, one object a line [MASKBIT_LOG_FORMAT].")
]
StateOption = Annotated[Path | None, typer.Option(help="Folder of the embedded Redis [MASKBIT_STATE_DIR].")]

_WITH_PASSWORD = re.compile("//.*@")


class Part(StrEnum):
    """What can be asked whether it is ready."""

    GATEWAY = "gateway"
    WORKER = "worker"


def _settings(**given: Any) -> Any:
    """Settings from the environment, overridden by the options that were given."""
    from pydantic import ValidationError

    from models.errors import ConfigError
    from service.logs import configure
    from service.settings import Settings

    try:
        settings = Settings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as exc:
        problem = exc.errors()[0]
        name = "_".join(map(str, problem["loc"]))
        # A password may be anywhere in a URL that cannot be read.
        got = "" if name == "redis_url" else " is " + _WITH_PASSWORD.sub("//…@", repr(problem["input"]))
        raise ConfigError(f"setting {name}{got}: {problem['msg'].removeprefix('Value error, ')}") from exc
    configure(settings.log_format, settings.log_level)
    return settings


def _checked_settings(**given: Any) -> Any:
    """The same for what is to run; tells of variables that are misspelt, once for all parts of `serve`."""
    from service.parent import SUPERVISED
    from service.settings import misspelt

    settings = _settings(**given)
    for name, meant in misspelt(() if os.environ.get(SUPERVISED) else os.environ).items():
        logging.getLogger("maskbit").warning("%s is no setting; did you mean %s?", name, meant)
    return settings


def _joined(bundles: list[str] | None) -> str | None:
    return ",".join(bundles) if bundles else None


def serve(
    host: HostOption = None,
    port: PortOption = None,
    bundle: BundlesOption = None,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    slots: SlotsOption = None,
    state_dir: StateOption = None,
    redis_url: RedisOption = None,
    log_format: LogOption = None,
) -> None:
    """Start Redis, a worker for each bundle and the gateway with its page; Ctrl-C stops them cleanly."""
    settings = _checked_settings(
        host=host,
        port=port,
        bundle=_joined(bundle),
        runtime=runtime,
        device=device,
        slots=slots,
        state_dir=state_dir,
        redis_url=redis_url,
        log_format=log_format,
    )
    from service.supervisor import serve as run

    run(settings, logging.getLogger("maskbit").info if settings.log_format == "json" else typer.echo)


def gateway(
    host: HostOption = None,
    port: PortOption = None,
    bundle: BundlesOption = None,
    redis_url: RedisOption = None,
    log_format: LogOption = None,
) -> None:
    """Start the HTTP gateway alone; it needs a Redis and, to answer, workers."""
    settings = _checked_settings(
        host=host, port=port, bundle=_joined(bundle), redis_url=redis_url, log_format=log_format
    )
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
    log_format: LogOption = None,
) -> None:
    """Start a worker alone; it needs a Redis."""
    settings = _checked_settings(
        bundle=bundle,
        runtime=runtime,
        device=device,
        slots=slots,
        redis_url=redis_url,
        log_format=log_format,
    )
    from service.parent import end_with_parent
    from service.worker.process import run_worker

    end_with_parent()
    run_worker(settings)


def health(part: Annotated[Part, typer.Argument(help="Which of them runs here.")]) -> None:
    """Say whether the gateway or the worker here is ready; code 1 if it is not. For containers' checks.

    A gateway is ready when Redis answers, a worker when its weights are warm too.
    It reads the same MASKBIT_HOST, MASKBIT_PORT and MASKBIT_METRICS_PORT as they do.
    """
    settings = _settings()
    from service.errors import Unavailable
    from service.health import check_ready

    try:
        check_ready(part, settings)
    except Unavailable as exc:
        typer.echo(exc.message, err=True)
        raise typer.Exit(1) from exc
    typer.echo(f"the {part} is ready")
