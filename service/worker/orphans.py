"""Finds revisions of a model whose jobs nobody works on: their last worker was killed before the last job."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass

from redis import Redis
from redis.exceptions import RedisError

from models.bundle import Manifest
from models.errors import MaskBitError
from service.jobs.keys import Keys
from service.jobs.redis_link import describe
from service.jobs.registry import is_deserted, manifest_of, others

log = logging.getLogger(__name__)

_PAUSE_FLOOR_S, _PAUSE_CEILING_S = 2.0, 60.0


@dataclass(frozen=True)
class Orphan:
    """A revision with open jobs and without a worker."""

    revision: str
    manifest: Manifest


class Orphans:
    """Those of the model `name`, as Redis shows them."""

    def __init__(self, redis: Redis, name: str, lease_s: float) -> None:
        self._redis = redis
        self._name = name
        # Longer than between two beats: when Redis was emptied, its lists of workers are too.
        self._patience_s = lease_s / 2
        self._deserted_since_s: dict[str, float] = {}
        self._unreadable: set[str] = set()
        self._pause_s = 0.0
        self._again_s = 0.0

    def look(self, own: Collection[str]) -> Orphan | None:
        """One beside `own` that has been deserted for half a lease, if there is one."""
        now, before = time.monotonic(), self._deserted_since_s
        if now < self._again_s:
            return None
        self._deserted_since_s = {}
        try:
            for revision in others(self._redis, self._name, own):
                if is_deserted(self._redis, Keys(self._name, revision)):
                    self._deserted_since_s[revision] = before.get(revision, now)
            waited = (one for one, since in self._deserted_since_s.items() if now - since >= self._patience_s)
            found = (self._read(revision) for revision in waited)
            return next((one for one in found if one is not None), None)
        except (RedisError, OSError) as error:
            log.debug("jobs without a worker are looked for later: %s", describe(error))
            return None

    def put_off(self) -> None:
        """What was found cannot be adopted now: find nothing for a while, ever longer."""
        self._pause_s = min(max(2 * self._pause_s, _PAUSE_FLOOR_S), _PAUSE_CEILING_S)
        self._again_s = time.monotonic() + self._pause_s

    def _read(self, revision: str) -> Orphan | None:
        text = manifest_of(self._redis, self._name, revision)
        if text is None or revision in self._unreadable:
            return None
        try:
            return Orphan(revision, Manifest.from_json(text))
        except (MaskBitError, ValueError) as exc:
            self._unreadable.add(revision)
            log.warning("%s@%s has no worker, and its manifest cannot be read: %s", self._name, revision, exc)
            return None
