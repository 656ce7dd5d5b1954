"""The gateway process: the application behind the HTTP API, and the command that runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib import metadata

from fastapi import FastAPI

from models.bundle import Bundle, open_bundle
from models.errors import ConfigError
from service.gateway import responses
from service.gateway.desk import Desk
from service.gateway.http_server import listen, make_server
from service.gateway.middleware import Envelope
from service.gateway.routes import about, generate, health, jobs, openai, page, tokens
from service.settings import Settings

_ROUTES = (generate, tokens, jobs, openai, about, health, page)
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
        version=_version(),
        lifespan=_lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.desk = desk
    responses.install(app)
    for module in _ROUTES:
        app.include_router(module.router)
    app.mount("/static", page.assets())
    app.add_middleware(Envelope, metrics=desk.metrics)
    return app


def _version() -> str:
    try:
        return metadata.version("maskbit-serve")
    except metadata.PackageNotFoundError:
        # Run from a checkout that is not installed.
        return "0"


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
    app = create_app(settings, [open_bundle(settings.bundle)])
    server = make_server(app, settings, partial(_drain, app))
    with listen(settings.host, settings.port) as listener:
        server.run(sockets=[listener])


def _drain(app: FastAPI) -> None:
    app.state.desk.draining = True
