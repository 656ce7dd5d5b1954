"""Jobs that nobody works on are found in a real Redis, and those of living workers are left alone."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import pytest
from redis import Redis

from models.bundle import Bundle, Manifest
from models.runtime.loading import Choice
from service.jobs.consumer import Consumer
from service.jobs.job import QueueLimits
from service.jobs.keys import Keys, revisions_of
from service.jobs.registry import register
from service.settings import Settings
from service.telemetry import WorkerMetrics
from service.worker import succession, worker_loader
from service.worker.orphans import Orphan, Orphans
from service.worker.succession import Succession
from tests.gateway_harness import until

pytest_plugins = ["tests.gateway_fixtures"]

LEASE_S = 0.3


@pytest.fixture
def keys() -> Keys:
    return Keys("fruit", uuid.uuid4().hex)


@pytest.fixture
def raw(empty_redis: str) -> Iterator[Redis]:
    with Redis.from_url(empty_redis) as redis:
        yield redis


@pytest.fixture
def worker(empty_redis: str, keys: Keys) -> Iterator[Consumer]:
    consumer = Consumer(empty_redis, keys, "some-worker", QueueLimits(lease_s=LEASE_S))
    yield consumer
    consumer.close()


@pytest.fixture
def accept(raw: Redis, keys: Keys) -> Callable[[], None]:
    """An open job of the revision."""

    def one() -> None:
        raw.zadd(keys.open, {"some-job": 1e15})

    return one


def looks(orphans: Orphans, own: Collection[str] = (), seconds: float = 2 * LEASE_S) -> list[Orphan | None]:
    """What it found, look by look."""
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        found.append(orphans.look(own))
        time.sleep(LEASE_S / 10)
    return found


def test_a_revision_with_open_jobs_and_no_worker_is_an_orphan_after_a_while(
    raw: Redis, keys: Keys, tiny_manifest: Manifest, accept: Callable[[], None]
) -> None:
    manifest = replace(tiny_manifest, name=keys.bundle)
    register(raw, keys.bundle, keys.revision, manifest.to_json())
    orphans = Orphans(raw, keys.bundle, LEASE_S)
    assert not any(looks(orphans)), "it has no jobs"
    accept()
    found = looks(orphans)
    assert found[0] is None
    assert found[-1] == Orphan(keys.revision, manifest)
    assert not any(looks(orphans, [keys.revision])), "it is served here"


@pytest.mark.parametrize("says", [Consumer.leave, lambda worker: worker.announce({})])
def test_a_revision_is_no_orphan_as_long_as_a_worker_leaves_or_stays(
    raw: Redis,
    keys: Keys,
    worker: Consumer,
    tiny_manifest: Manifest,
    accept: Callable[[], None],
    says: Callable[[Consumer], object],
) -> None:
    register(raw, keys.bundle, keys.revision, tiny_manifest.to_json())
    accept()
    orphans = Orphans(raw, keys.bundle, LEASE_S)
    for _ in range(3):
        says(worker)
        assert not any(looks(orphans, seconds=LEASE_S / 2))
    assert any(looks(orphans, seconds=3 * LEASE_S))
    says(worker)
    assert orphans.look([]) is None
    worker.retire()
    assert any(looks(orphans)), "it has ended"


def test_a_redis_that_is_away_has_no_orphans_and_a_manifest_of_nonsense_is_told(
    raw: Redis, keys: Keys, accept: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    with Redis(port=1) as away:
        assert Orphans(away, keys.bundle, LEASE_S).look([]) is None
    register(raw, keys.bundle, keys.revision, "{}")
    accept()
    assert not any(looks(Orphans(raw, keys.bundle, LEASE_S)))
    assert caplog.text.count("its manifest cannot be read") == 1


@pytest.fixture
def process(empty_redis: str, plain_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Succession]:
    """A worker process that looks often, in a thread, with the no-op runtime."""
    monkeypatch.setattr(succession, "LOOK_S", 0.05)
    settings = Settings(redis_url=empty_redis, bundle=str(plain_bundle.path), runtime="noop", lease_s=1)
    one = Succession(settings, WorkerMetrics(), None)
    thread = threading.Thread(target=one.run)
    thread.start()
    yield one
    one.stop()
    thread.join(20)
    assert not thread.is_alive()


def strand(raw: Redis, manifest: Manifest, score: float) -> str:
    """An open job of a revision without a worker, registered before or after the others."""
    keys = Keys(manifest.name, uuid.uuid4().hex[:12])
    register(raw, keys.bundle, keys.revision, manifest.to_json())
    raw.zadd(revisions_of(keys.bundle), {keys.revision: score})
    raw.zadd(keys.open, {"some-job": 1e15})
    return keys.revision


def heirs(process: Succession) -> list[str]:
    return [reign.revision for reign in process._reigns if reign.heir]


def test_an_heir_is_found_for_former_revisions_and_never_for_a_newer_one(
    raw: Redis, process: Succession, tiny_manifest: Manifest
) -> None:
    former = strand(raw, tiny_manifest, 0)
    until(lambda: heirs(process) == [former])
    raw.delete(Keys(tiny_manifest.name, former).open)
    until(lambda: not heirs(process))
    strand(raw, tiny_manifest, 1e18)
    time.sleep(1.5)
    assert not heirs(process)


def test_what_cannot_be_loaded_once_more_is_tried_ever_more_rarely(
    raw: Redis, process: Succession, tiny_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float] = []

    def fails(*_: object, **__: object) -> Choice:
        tries.append(time.monotonic())
        raise MemoryError("out of memory")

    monkeypatch.setattr(worker_loader, "choose_runtime", fails)
    former = strand(raw, tiny_manifest, 0)
    until(lambda: len(tries) == 2)
    assert tries[1] - tries[0] > 2
    monkeypatch.undo()
    until(lambda: heirs(process) == [former])
    raw.delete(Keys(tiny_manifest.name, former).open)
