"""The models of a deployment, by name, each at the revision that takes new jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from models.bundle import Bundle
from service.errors import InvalidRequest, NotFound, ResultExpired, Unavailable
from service.gateway.lineage import Lineage
from service.gateway.served_model import ServedModel
from service.jobs.job import JobView
from service.jobs.registry import Registry
from service.settings import Settings


class Catalogue:
    """At least one model, no two of one name; the first is the default."""

    def __init__(self, bundles: Sequence[Bundle], settings: Settings, redis_url: str) -> None:
        self._registry = Registry(redis_url)
        self._lineages = {
            bundle.manifest.name: Lineage(bundle, self._registry, settings, redis_url) for bundle in bundles
        }
        assert len(self._lineages) == len(bundles)

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """All models at the revision that takes new jobs, the default first."""
        return tuple(lineage.current for lineage in self._lineages.values())

    @property
    def revisions(self) -> tuple[ServedModel, ...]:
        """All models at all revisions of which something is left, those of `models` first."""
        former = (one for lineage in self._lineages.values() for one in lineage.former)
        return (*self.models, *former)

    @property
    def default(self) -> ServedModel:
        """The model of requests that name none."""
        return self.models[0]

    def get(self, name: str | None) -> ServedModel:
        """The model `name`, the default for None. Raises InvalidRequest."""
        return self._lineage(name).current

    async def pick(self, name: str | None) -> ServedModel:
        """The model `name`, or the default, with a living worker. Raises InvalidRequest, Unavailable."""
        return await self._lineage(name).pick()

    async def successor(self, refused: ServedModel) -> ServedModel:
        """The revision that takes the jobs that `refused` takes no more. Raises Unavailable."""
        return await self._lineages[refused.name].successor(refused)

    async def first(
        self, model: ServedModel, tenant: str, key: str, fingerprint: str
    ) -> tuple[ServedModel, str] | None:
        """The job of another revision that a key led to. Raises IdempotencyConflict, Unavailable."""
        for one in self.revisions:
            if one.name == model.name and one is not model:
                job_id = await one.jobs.first(tenant, key, fingerprint)
                if job_id is not None:
                    return one, job_id
        return None

    def _lineage(self, name: str | None) -> Lineage:
        if name is None:
            return next(iter(self._lineages.values()))
        if name not in self._lineages:
            raise InvalidRequest(f"model is {name[:80]!r}; allowed are {', '.join(self._lineages)}")
        return self._lineages[name]

    async def find(self, job_id: str, tenant: str) -> tuple[ServedModel, JobView]:
        """The job of `tenant` with its model. Raises NotFound, ResultExpired, Unavailable."""
        known = self.revisions
        try:
            return await _find(known, job_id, tenant)
        except NotFound:
            # Another gateway may have noticed a new revision first.
            for lineage in self._lineages.values():
                await lineage.look()
            if not (fresh := [one for one in self.revisions if one not in known]):
                raise
        return await _find(fresh, job_id, tenant)

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

    async def workers(self) -> dict[str, list[dict[str, Any]]]:
        """The living workers of each model."""
        return {model.name: await model.fleet.living() for model in self.models}

    async def open(self) -> None:
        """Open all models."""
        await asyncio.gather(*(lineage.open() for lineage in self._lineages.values()))

    async def close(self) -> None:
        """Close all models."""
        await asyncio.gather(*(lineage.close() for lineage in self._lineages.values()))
        await self._registry.close()


async def _find(models: Iterable[ServedModel], job_id: str, tenant: str) -> tuple[ServedModel, JobView]:
    missing: NotFound | ResultExpired | None = None
    for model in models:
        try:
            return model, await model.jobs.get(job_id, tenant)
        except ResultExpired as exc:
            missing = exc
        except NotFound as exc:
            missing = missing or exc
    assert missing is not None
    raise missing
