"""The models of a deployment, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from models.bundle import Bundle
from models.errors import ConfigError
from service.errors import InvalidRequest, NotFound, ResultExpired, Unavailable
from service.gateway.served_model import ServedModel
from service.jobs.job import JobView
from service.settings import Settings


class Catalogue:
    """At least one model; the first is the default. Raises ConfigError for two of one name."""

    def __init__(self, bundles: Sequence[Bundle], settings: Settings, redis_url: str) -> None:
        self._models: dict[str, ServedModel] = {}
        for bundle in bundles:
            model = ServedModel(bundle, settings, redis_url)
            if model.name in self._models:
                raise ConfigError(f"two bundles are called {model.name!r}; every name must be another")
            self._models[model.name] = model

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """All models, the default first."""
        return tuple(self._models.values())

    @property
    def default(self) -> ServedModel:
        """The model of requests that name none."""
        return self.models[0]

    def get(self, name: str | None) -> ServedModel:
        """The model `name`, the default for None. Raises InvalidRequest."""
        if name is None:
            return self.default
        if name not in self._models:
            raise InvalidRequest(f"model is {name[:80]!r}; allowed are {', '.join(self._models)}")
        return self._models[name]

    async def find(self, job_id: str, tenant: str) -> tuple[ServedModel, JobView]:
        """The job of `tenant` with its model. Raises NotFound, ResultExpired, Unavailable."""
        missing: NotFound | ResultExpired | None = None
        for model in self.models:
            try:
                return model, await model.jobs.get(job_id, tenant)
            except ResultExpired as exc:
                missing = exc
            except NotFound as exc:
                missing = missing or exc
        assert missing is not None
        raise missing

    async def check_alive(self) -> None:
        """Raise Unavailable unless some model has a living worker."""
        failure: Unavailable | None = None
        for model in self.models:
            try:
                await model.fleet.workers()
                return
            except Unavailable as exc:
                failure = failure or exc
        assert failure is not None
        raise failure

    async def workers(self) -> list[dict[str, Any]]:
        """The living workers of all models."""
        found: list[dict[str, Any]] = []
        for model in self.models:
            with suppress(Unavailable):
                found += await model.fleet.workers()
        return found

    async def open(self) -> None:
        """Open all models."""
        await asyncio.gather(*(model.open() for model in self.models))

    async def close(self) -> None:
        """Close all models."""
        await asyncio.gather(*(model.close() for model in self.models))
