"""The revisions of one model in a worker process, one after the other: nobody notices when one takes over.

The new weights are loaded and warmed up beside those in use. Then gateways send new jobs to the new revision,
while the old one goes on with what it was given, in a thread of its own, until none of its jobs is open.
Where the last worker of an old revision was killed before that, a worker of another one is its heir.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from redis.exceptions import RedisError

from models.bundle import open_bundle
from models.errors import first_line
from models.runtime.loading import free_memory
from service.jobs.redis_link import connect, describe
from service.jobs.registry import is_registered, newest, register
from service.settings import Settings
from service.telemetry import WorkerMetrics
from service.worker.bundle_watch import BundleWatch
from service.worker.orphans import Orphans
from service.worker.reign import Reign
from service.worker.task import Observer
from service.worker.worker_loader import WorkerLoader

log = logging.getLogger(__name__)

LOOK_S = 2.0
MOST = 2  # revisions in memory at a time


class Succession:
    """Loads a first revision; `run` serves until `stop`, by the newest one that could be loaded."""

    def __init__(self, settings: Settings, metrics: WorkerMetrics, observer: Observer | None) -> None:
        """Raises MaskBitError when the first revision cannot be loaded."""
        assert settings.redis_url is not None
        self._settings = settings
        self._metrics = metrics
        self._loader = WorkerLoader(settings, metrics, observer)
        self._redis = connect(settings.redis_url)
        self._superseded = False
        self._asked = False
        self._stopping = False
        self._loading = False
        self._winding_up = False
        # Not an Event, which a signal handler must not set while the same thread waits for it.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._reigns: list[Reign] = []
        bundle = open_bundle(settings.bundle)
        self._watch = BundleWatch(settings.bundle, bundle)
        self._reigns.append(Reign(bundle, self._loader.load(bundle), bundle.revision))
        self._orphans = Orphans(self._redis, bundle.manifest.name, settings.lease_s)

    def stop(self) -> None:
        """Drain and end. Safe in a signal handler."""
        self._stopping = True
        if self._loading:
            # `run` is busy for a while.
            self._wind_up()
        self._wake.put(None)

    def look_now(self) -> None:
        """Look for a new revision at once. Safe in a signal handler."""
        self._asked = True
        self._wake.put(None)

    def readiness(self) -> dict[str, Any]:
        """Whether jobs can be expected of this process just now; `reason` says why not. For any thread.

        With what it has loaded, and in `refused` the newer revision that it could not.
        """
        current = self._reigns[-1:]
        reason = self._hindrance(current)
        answer = {"ready": not reason, "reason": reason, "refused": self._watch.refusal}
        return answer | (asdict(current[0].worker.info) if current else {})

    def _hindrance(self, current: list[Reign]) -> str:
        if self._stopping or not current:
            return "the worker is ending"
        return "" if current[0].worker.consumer.available else "Redis does not answer as it should"

    def run(self) -> None:
        """Serve; raises what broke a worker."""
        self._reigns[0].begin(self._reign_ended)
        while self._reigns:
            self._make_known()
            if self._stopping:
                self._wind_up()
            with suppress(queue.Empty):
                self._wake.get(timeout=LOOK_S)
            if self._bury():
                free_memory()
            if not self._stopping and len(self._reigns) < MOST:
                self._look()
            if not self._stopping and len(self._reigns) < MOST:
                self._inherit()
        self._redis.close()

    def _reign_ended(self) -> None:
        self._wake.put(None)

    def _look(self) -> None:
        """Let a new revision take over, if there is one that can be loaded."""
        asked, self._asked = self._asked, False
        bundle = self._watch.look(asked=asked)
        if bundle is None:
            return
        log.info("loading %s beside %s", bundle.ref, self._watch.current.ref)
        former = self._reigns[-1].worker
        reign = self._attempt(
            lambda: Reign(bundle, self._loader.load_successor(bundle, former), bundle.revision),
            lambda exc: self._watch.refuse(bundle.revision, first_line(exc)),
        )
        # A signal may have come meanwhile.
        if reign is not None and not self._stopping:
            self._watch.current = bundle
            self._reigns.append(reign)
            reign.begin(self._reign_ended)

    def _attempt(self, load: Callable[[], Reign], refuse: Callable[[Exception], None]) -> Reign | None:
        """What `load` returns; None if it raised, which `refuse` was told."""
        reign = None
        self._loading = True
        try:
            reign = load()
        except Exception as exc:
            refuse(exc)
        finally:
            self._loading = False
        if reign is None:
            # Not earlier, for the error's frames hold on to the weights.
            free_memory()
        return reign

    def _inherit(self) -> None:
        """Become the heir of a revision whose jobs nobody works on any more, if there is one.

        A newer one is waited for: it has just been published, and its workers may be about to load it.
        """
        own = [reign.revision for reign in self._reigns]
        orphan = None if self._superseded else self._orphans.look(own)
        if orphan is None:
            return
        bundle = self._reigns[-1].bundle
        log.warning(
            "nobody works on the jobs of %s@%s: %s does", bundle.manifest.name, orphan.revision, bundle.ref
        )

        def put_off(error: Exception) -> None:
            log.warning("they wait, since it cannot be loaded once more: %s", describe(error))
            self._orphans.put_off()

        former = self._reigns[-1].worker
        reign = self._attempt(
            lambda: Reign(bundle, self._loader.load_heir(bundle, former, orphan), orphan.revision), put_off
        )
        # A signal may have come meanwhile.
        if reign is not None and not self._stopping:
            reign.worker.leave()
            self._reigns.insert(0, reign)
            reign.begin(self._reign_ended)

    def _make_known(self) -> None:
        """Keep all revisions in the registry; once the newest is there, the other gives way to it."""
        *former, current = self._reigns
        settled = current.entered
        try:
            for reign in self._reigns:
                if not reign.heir:
                    self._enter(reign)
            self._superseded = newest(self._redis, current.bundle.manifest.name) != current.bundle.revision
        except (RedisError, OSError) as error:
            log.debug("the revisions are registered later: %s", describe(error))
            return
        if settled:
            for reign in former:
                reign.worker.leave()

    def _enter(self, reign: Reign) -> None:
        name, revision = reign.bundle.manifest.name, reign.revision
        if not reign.entered or not is_registered(self._redis, name, revision):
            register(self._redis, name, revision, reign.bundle.text)
            reign.entered = True

    def _wind_up(self) -> None:
        """End: with the running jobs, or the whole queue where new jobs go to another revision.

        Nobody else may be left who can do those that wait there.
        """
        if self._winding_up:
            return
        self._winding_up = True
        for reign in self._reigns:
            if not (reign.worker.leaving or self._superseded):
                reign.worker.stop()
                continue
            reign.worker.leave()
            timer = threading.Timer(self._settings.drain_s, reign.cut_off)
            timer.daemon = True
            timer.start()

    def _bury(self) -> int:
        """Let go of the revisions that have ended; returns how many. A crash ends all and is raised."""
        ended = [reign for reign in self._reigns if reign.over]
        for reign in ended:
            self._reigns.remove(reign)
            reign.join()
            if reign.crash is not None:
                for other in self._reigns:
                    other.worker.stop()
                    other.join()
                raise reign.crash
            if not reign.heir:
                info = reign.worker.info
                self._metrics.model_info.remove(info.bundle, info.runtime, info.precision)
            log.info("%s@%s has ended", reign.bundle.manifest.name, reign.revision)
        return len(ended)
