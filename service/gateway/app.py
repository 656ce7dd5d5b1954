"""The gateway process: the application behind the HTTP API, and the command that runs it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from models.bundle import Bundle, open_bundles
from models.errors import ConfigError
from models.version import own_version
from service.gateway import responses
from service.gateway.desk import Desk
from service.gateway.gate import Gate
from service.gateway.hosts import HostCheck, is_loopback
from service.gateway.http_server import allow_files, listen, make_server
from service.gateway.middleware import Envelope
from service.gateway.routes import about, edit, generate, health, jobs, openai, page, reconstruct, tokens
from service.settings import Settings

log = logging.getLogger(__name__)

_ROUTES = (generate, tokens, edit, reconstruct, jobs, openai, about, health, page)
_ABOUT = "Class-conditional pictures and bit tokens with MaskBit models."


def create_app(settings: Settings, bundles: Sequence[Bundle]) -> FastAPI:
    """The application. Nothing is started before its lifespan begins, which needs no Redis either.

    Raises ConfigError without a Redis URL in the settings.
    """
    if settings.redis_url is None:
        raise ConfigError(
            "redis_url is not set; give MASKBIT_REDIS_URL the address of Redis, as redis://host:6379/0"
        )
    desk = Desk(settings, bundles, settings.redis_url)
    app = FastAPI(
        title="MaskBit Serve",
        description=_ABOUT,
        version=own_version(),
        lifespan=_lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.desk = desk
    responses.install(app)
    for module in _ROUTES:
        app.include_router(module.router)
    app.mount("/static", page.assets())
    app.add_middleware(Gate, keys=desk.keys, allowances=desk.allowances, metrics=desk.metrics)
    app.add_middleware(HostCheck, settings=settings)
    app.add_middleware(Envelope, metrics=desk.metrics, spans=desk.spans)
    if settings.proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=settings.proxies)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    desk: Desk = app.state.desk
    await desk.open()
    try:
        yield
    finally:
        await desk.close()


def run_gateway(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises MaskBitError: no bundle, Redis URL or port."""
    app = create_app(settings, open_bundles(settings.bundles))
    server = make_server(app, settings, partial(_drain, app))
    allow_files(settings.max_connections)
    if not app.state.desk.keys.required and not is_loopback(settings.host):
        log.warning("everybody who reaches %s may draw: no API keys are set", settings.host)
    with listen(settings.host, settings.port) as listener:
        server.run(sockets=[listener])


def _drain(app: FastAPI) -> None:
    app.state.desk.draining = True
