"""Several models behind one gateway, and one model through its revisions."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from models.bundle import MANIFEST, Bundle, Manifest, open_bundle, open_bundles
from models.errors import ConfigError
from service.errors import Moved
from service.gateway.lineage import Lineage
from service.jobs.consumer import Consumer
from service.jobs.job import NewJob, QueueLimits
from service.jobs.keys import Keys, manifests_of, revisions_of
from service.jobs.registry import Registry, is_registered, newest, register
from service.jobs.store import JobStore
from service.settings import Settings
from tests.gateway_harness import FakeWorker, Gateway, gateway_running, until

DRAW = {"class_id": 1, "seed": 7, "steps": 2, "format": "tokens"}


@pytest.fixture
def redis(gateway_redis: str) -> Iterator[Redis]:
    """An empty Redis."""
    with Redis.from_url(gateway_redis) as redis:
        redis.flushall()
        yield redis


@pytest.fixture
def make(tmp_path: Path, tiny_manifest: Manifest) -> Callable[..., Bundle]:
    """Makes bundles without weights: another number is another revision."""

    def one(number: int, **changes: Any) -> Bundle:
        manifest = replace(tiny_manifest, provenance={"number": number}, **changes)
        folder = tmp_path / f"{manifest.name}-{number}"
        folder.mkdir()
        (folder / MANIFEST).write_text(manifest.to_json())
        return open_bundle(str(folder))

    return one


@contextmanager
def working(gateway: Gateway, redis_url: str, bundle: Bundle) -> Iterator[FakeWorker]:
    """A worker of `bundle` that has registered it."""
    with Redis.from_url(redis_url) as redis:
        register(redis, bundle.manifest.name, bundle.revision, bundle.text)
    worker = FakeWorker(gateway, redis_url, bundle=bundle)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def bundle_in_use(gateway: Gateway, model: str | None = None) -> str:
    """What the gateway serves now."""
    params = {"model": model} if model else {}
    return str(gateway.client.get("/info", params=params).json()["bundle"])


def draw(gateway: Gateway, **fields: Any) -> httpx.Response:
    return gateway.client.post("/generate", json={**DRAW, **fields})


def start_job(gateway: Gateway, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return gateway.client.post("/jobs", json={"kind": "generate", **DRAW, **fields}, headers=headers)


def done(gateway: Gateway, location: str) -> dict[str, Any]:
    """The job's answer, once it is done."""
    until(lambda: gateway.client.get(location).status_code == 200)
    return dict(gateway.client.get(location).json()["result"])


def test_a_request_names_its_model_and_each_model_has_a_queue_of_its_own(
    gateway_redis: str, redis: Redis, make: Callable[..., Bundle]
) -> None:
    tiny, other = make(1), make(1, name="other", class_names=("ant", "bee", "cat", "dog", "eel"))
    with (
        gateway_running(tiny, gateway_redis, other) as gateway,
        working(gateway, gateway_redis, tiny) as first,
        working(gateway, gateway_redis, other) as second,
    ):
        until(lambda: all(gateway.client.get("/readyz").json().get("models", {"": False}).values()))
        answers = [
            draw(gateway).json(),
            draw(gateway, model="tiny").json(),
            draw(gateway, model="other").json(),
        ]
        assert [answer["model"] for answer in answers] == ["tiny", "tiny", "other"]
        assert [answer["bundle"] for answer in answers] == [tiny.ref, tiny.ref, other.ref]
        assert [answer["images"][0]["class_name"] for answer in answers] == ["banana", "banana", "bee"]
        assert (len(first.claimed), len(second.claimed)) == (2, 1)
        assert done(gateway, start_job(gateway, model="other").headers["location"])["model"] == "other"
        assert gateway.client.get("/classes?model=other&search=bee").json()["classes"] == [
            {"id": 1, "name": "bee"}
        ]
        assert bundle_in_use(gateway) == tiny.ref
        assert bundle_in_use(gateway, "other") == other.ref
        listed = gateway.client.get("/v1/models").json()["data"]
        assert [(card["id"], card["alive"]) for card in listed] == [("tiny", True), ("other", True)]
        refused = draw(gateway, model="third")
        assert refused.status_code == 422
        assert "'third'; allowed are tiny, other" in refused.json()["error"]["message"]


def test_a_model_without_a_worker_is_unavailable_and_leaves_the_others_alone(
    gateway_redis: str, redis: Redis, make: Callable[..., Bundle]
) -> None:
    tiny, other = make(1), make(1, name="other")
    with (
        gateway_running(tiny, gateway_redis, other) as gateway,
        working(gateway, gateway_redis, other),
    ):
        until(lambda: gateway.client.get("/readyz").status_code == 200)
        ready = gateway.client.get("/readyz").json()
        assert ready["models"] == {"tiny": False, "other": True}
        assert [worker["bundle"] for worker in ready["workers"]] == [other.ref]
        refused = draw(gateway)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "'tiny'" in refused.json()["error"]["message"]
        assert draw(gateway, model="other").status_code == 200
        assert {card["id"]: card["alive"] for card in gateway.client.get("/v1/models").json()["data"]} == {
            "tiny": False,
            "other": True,
        }


def test_metrics_tell_the_models_apart(gateway_redis: str, redis: Redis, make: Callable[..., Bundle]) -> None:
    tiny, other = make(1), make(1, name="other")
    with ExitStack() as stack:
        gateway = stack.enter_context(gateway_running(tiny, gateway_redis, other))
        workers = [stack.enter_context(working(gateway, gateway_redis, one)) for one in (tiny, other)]
        until(lambda: all(gateway.client.get("/readyz").json().get("models", {"": False}).values()))
        for worker in workers:
            worker.gate.clear()
        locations = [
            start_job(gateway, model=model).headers["location"]
            for model in ("tiny", "other", "other", "other")
        ]
        until(lambda: workers[0].claimed and workers[1].claimed)
        text = gateway.client.get("/metrics").text
        assert 'maskbit_queue_depth{kind="interactive",model="tiny"} 0.0' in text
        assert 'maskbit_queue_depth{kind="interactive",model="other"} 2.0' in text
        for worker in workers:
            worker.gate.set()
        for location in locations:
            done(gateway, location)
        text = gateway.client.get("/metrics").text
        assert 'maskbit_jobs_total{kind="generate",model="tiny",outcome="done"} 1.0' in text
        assert 'maskbit_jobs_total{kind="generate",model="other",outcome="done"} 3.0' in text


def test_two_bundles_of_one_name_cannot_be_served_together(make: Callable[..., Bundle]) -> None:
    paths = [str(make(number).path) for number in (1, 2)]
    with pytest.raises(ConfigError, match="are both called 'tiny'"):
        open_bundles(paths)


def test_new_jobs_go_to_a_new_revision_and_the_old_ones_end_where_they_are(
    gateway_redis: str, redis: Redis, make: Callable[..., Bundle]
) -> None:
    old, new = make(1), make(2, class_names=("ant", "bee", "cat", "dog", "eel"))
    with (
        gateway_running(old, gateway_redis) as gateway,
        working(gateway, gateway_redis, old) as before,
    ):
        until(lambda: draw(gateway).status_code == 200)
        before.gate.clear()
        before.progress = [{"image": 0, "step": 1, "steps": 2}]
        running, waiting, unwanted = (start_job(gateway).headers["location"] for _ in range(3))
        with working(gateway, gateway_redis, new) as after:
            until(lambda: bundle_in_use(gateway) == new.ref)
            answer = draw(gateway).json()
            assert (answer["bundle"], answer["images"][0]["class_name"]) == (new.ref, "bee")
            assert len(after.claimed) == 1
            assert gateway.client.get(running).status_code == 202
            assert gateway.client.get(waiting).json()["position"] == 0
            assert gateway.client.delete(unwanted).json()["state"] == "cancelled"
            with gateway.client.stream("GET", f"{running}/events") as events:
                lines = events.iter_lines()
                assert any(line == "event: progress" for line in lines)
                before.gate.set()
                assert any(f'"bundle":"{old.ref}"' in line for line in lines)
            for location in (running, waiting):
                answer = done(gateway, location)
                assert (answer["bundle"], answer["images"][0]["class_name"]) == (old.ref, "banana")


def test_a_gateway_that_starts_later_finds_the_jobs_of_former_revisions_and_its_files_may_be_older(
    gateway_redis: str, redis: Redis, make: Callable[..., Bundle]
) -> None:
    oldest, old, new = make(1), make(2), make(3)
    with (
        gateway_running(old, gateway_redis) as gateway,
        working(gateway, gateway_redis, old),
    ):
        until(lambda: draw(gateway).status_code == 200)
        location = start_job(gateway, key="abc").headers["location"]
        done(gateway, location)
        with working(gateway, gateway_redis, new), gateway_running(oldest, gateway_redis) as later:
            until(lambda: bundle_in_use(later) == new.ref)
            assert done(later, location)["bundle"] == old.ref
            assert start_job(later, key="abc").headers["location"] == location
            assert start_job(later, key="abc", seed=8).status_code == 422
            assert draw(later).json()["bundle"] == new.ref


def test_an_idempotency_key_leads_to_the_job_of_a_former_revision(
    gateway_redis: str, redis: Redis, make: Callable[..., Bundle]
) -> None:
    old, new = make(1), make(2)
    with (
        gateway_running(old, gateway_redis) as gateway,
        working(gateway, gateway_redis, old),
    ):
        until(lambda: draw(gateway).status_code == 200)
        headers = {"Idempotency-Key": "k"}
        first = gateway.client.post("/generate", json=DRAW, headers=headers).json()
        with working(gateway, gateway_redis, new) as after:
            until(lambda: bundle_in_use(gateway) == new.ref)
            again = gateway.client.post("/generate", json=DRAW, headers=headers)
            assert again.json() == first
            assert first["bundle"] == old.ref
            conflict = gateway.client.post("/generate", json={**DRAW, "seed": 8}, headers=headers)
            assert conflict.json()["error"]["code"] == "idempotency_conflict"
            assert after.claimed == []


def blinded(gateway: Gateway) -> None:
    """Let the gateway look at the registry no more of itself."""
    desk = gateway.app.state.desk
    for lineage in desk.catalogue._lineages.values():
        lineage._watching.get_loop().call_soon_threadsafe(lineage._watching.cancel)
        until(lineage._watching.done)


def close_door(redis: Redis, bundle: Bundle) -> None:
    """What a gateway does that has noticed a newer revision."""
    redis.set(key_called("closed", bundle), 1)


def key_called(name: str, bundle: Bundle) -> str:
    keys = Keys(bundle.manifest.name, bundle.revision)
    return next(key for key in keys.shared if key.endswith(f":{name}"))


@pytest.mark.parametrize("holds_tokens", [False, True])
def test_a_job_for_a_revision_that_is_closed_meanwhile_goes_to_the_next_one(
    gateway_redis: str, redis: Redis, make: Callable[..., Bundle], holds_tokens: bool
) -> None:
    old, new = make(1), make(2)
    with (
        gateway_running(old, gateway_redis) as gateway,
        working(gateway, gateway_redis, old) as before,
    ):
        until(lambda: draw(gateway).status_code == 200)
        blinded(gateway)
        with working(gateway, gateway_redis, new) as after:
            close_door(redis, old)
            claimed = len(before.claimed)
            if holds_tokens:
                packed = base64.b64encode(bytes(48)).decode()
                answer = gateway.client.post("/detokenize", json={"packed": packed}).json()
            else:
                answer = draw(gateway).json()
            assert answer["bundle"] == new.ref
            assert (len(before.claimed) - claimed, len(after.claimed)) == (0, 1)


def test_a_job_of_a_revision_that_a_gateway_has_not_noticed_yet_is_found_there(
    gateway_redis: str, redis: Redis, make: Callable[..., Bundle]
) -> None:
    old, new = make(1), make(2)
    with (
        gateway_running(old, gateway_redis) as quick,
        gateway_running(old, gateway_redis) as slow,
        working(quick, gateway_redis, old),
    ):
        until(lambda: draw(slow).status_code == 200)
        blinded(slow)
        with working(quick, gateway_redis, new):
            until(lambda: bundle_in_use(quick) == new.ref)
            location = start_job(quick).headers["location"]
            assert slow.client.get(location).status_code in (200, 202)
            assert done(slow, location)["bundle"] == new.ref
            assert slow.client.get("/jobs/" + 32 * "0").status_code == 404


def test_a_job_that_the_next_revision_would_take_for_another_is_refused_for_now(
    gateway_redis: str, redis: Redis, make: Callable[..., Bundle]
) -> None:
    old, new = make(1), make(2, class_names=("ant", "bee", "cat", "dog", "eel"))
    with (
        gateway_running(old, gateway_redis) as gateway,
        working(gateway, gateway_redis, old),
    ):
        until(lambda: draw(gateway).status_code == 200)
        blinded(gateway)
        with working(gateway, gateway_redis, new) as after:
            close_door(redis, old)
            refused = draw(gateway)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert "new revision" in refused.json()["error"]["message"]
            assert after.claimed == []
            assert draw(gateway).json()["bundle"] == new.ref


def test_an_older_revision_serves_when_the_newest_has_no_worker_left(
    gateway_redis: str, redis: Redis, make: Callable[..., Bundle]
) -> None:
    old, new = make(1), make(2)
    with (
        gateway_running(old, gateway_redis) as gateway,
        working(gateway, gateway_redis, old),
    ):
        with working(gateway, gateway_redis, new):
            until(lambda: bundle_in_use(gateway) == new.ref)
        until(lambda: bundle_in_use(gateway) == old.ref)
        assert draw(gateway).json()["bundle"] == old.ref


def test_the_revision_that_was_loaded_last_serves_also_when_it_is_an_older_one(
    gateway_redis: str, redis: Redis, make: Callable[..., Bundle]
) -> None:
    old, new = make(1), make(2)
    with (
        gateway_running(old, gateway_redis) as gateway,
        working(gateway, gateway_redis, old),
        working(gateway, gateway_redis, new),
    ):
        until(lambda: bundle_in_use(gateway) == new.ref)
        register(redis, "tiny", old.revision, old.text)
        until(lambda: bundle_in_use(gateway) == old.ref)
        assert draw(gateway).json()["bundle"] == old.ref


def test_what_cannot_be_read_in_the_registry_is_left_out(
    gateway_redis: str, redis: Redis, make: Callable[..., Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    old, new = make(1), make(2)
    with (
        gateway_running(old, gateway_redis) as gateway,
        working(gateway, gateway_redis, old),
    ):
        register(redis, "tiny", "ffffffffffff", json.dumps({**json.loads(old.text), "format_version": 2}))
        until(lambda: "ffffffffffff is not served" in caplog.text)
        with working(gateway, gateway_redis, new):
            until(lambda: bundle_in_use(gateway) == new.ref)
    assert caplog.text.count("is not served") == 1


def test_nothing_is_left_of_a_revision_after_its_last_job(
    gateway_redis: str, redis: Redis, make: Callable[..., Bundle]
) -> None:
    old, new = make(1), make(2)
    with gateway_running(old, gateway_redis) as gateway:
        with working(gateway, gateway_redis, old):
            until(lambda: draw(gateway).status_code == 200)
            location = start_job(gateway).headers["location"]
            done(gateway, location)
        with working(gateway, gateway_redis, new):
            until(lambda: bundle_in_use(gateway) == new.ref)
            keys = Keys("tiny", old.revision)
            assert redis.exists(keys.interactive, keys.job(location.rpartition("/")[2])) == 2
            # As if a minute and the time of the result had passed.
            close_door(redis, old)
            assert is_registered(redis, "tiny", old.revision)
            kept: Any = redis.zrange(keys.results, 0, -1)
            redis.zadd(keys.results, dict.fromkeys(kept, 1))
            until(lambda: redis.exists(keys.results) == 0)
            redis.delete(key_called("gone", old))
            until(lambda: not is_registered(redis, "tiny", old.revision))
            assert newest(redis, "tiny") == new.revision
            assert redis.hkeys(manifests_of("tiny")) == [new.revision.encode()]
            assert redis.zcard(revisions_of("tiny")) == 1
            until(lambda: len(gateway.app.state.desk.catalogue.revisions) == 1)
            left = [name for name in redis.scan_iter() if old.revision.encode() in name]
            assert all(redis.ttl(name) > 0 for name in left), left


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_revision_with_a_worker_a_job_or_an_open_door_is_not_forgotten(
    gateway_redis: str, redis: Redis, make: Callable[..., Bundle]
) -> None:
    bundle = make(1)
    keys = Keys("tiny", bundle.revision)
    store = JobStore(gateway_redis, keys, QueueLimits())
    await store.start()
    assert not await store.dissolve()
    await store.close_door(1)
    assert not await store.dissolve(), "a worker may still be about to end"
    close_door(redis, bundle)
    for key in (keys.workers, keys.open, keys.results):
        redis.zadd(key, {"x": 1 << 60})
        assert not await store.dissolve()
        redis.delete(key)
    assert await store.dissolve()
    with pytest.raises(Moved):
        await store.submit(NewJob("late", "generate", b"", fingerprint=""))
    await store.open_door(2)
    assert not await store.dissolve()
    await store.close()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_two_gateways_that_turn_at_once_never_leave_two_doors_open(
    gateway_redis: str, redis: Redis, make: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles, rng = [make(1), make(2)], random.Random(1)
    settings = Settings(redis_url=gateway_redis, lease_s=60)
    for bundle in bundles:
        register(redis, "tiny", bundle.revision, bundle.text)
        worker = Consumer(
            gateway_redis, Keys("tiny", bundle.revision), f"worker-{bundle.revision}", settings.queue_limits()
        )
        worker.announce({"runtime": "noop", "device": "cpu", "bundle": bundle.ref})
        worker.close()
        close_door(redis, bundle)

    def opened() -> list[Bundle]:
        return [one for one in bundles if not redis.exists(key_called("closed", one))]

    def late(plain: Callable[[JobStore, int], Awaitable[bool]]) -> Callable[[JobStore, int], Awaitable[bool]]:
        async def move(store: JobStore, turn: int) -> bool:
            await asyncio.sleep(rng.uniform(0, 0.005))
            moved = await plain(store, turn)
            assert len(opened()) <= 1
            return moved

        return move

    for name in ("open_door", "close_door"):
        monkeypatch.setattr(JobStore, name, late(getattr(JobStore, name)))
    registry = Registry(gateway_redis)
    gateways = [Lineage(bundle, registry, settings, gateway_redis) for bundle in bundles]
    for gateway in gateways:
        await gateway.current.open()

    async def look(gateway: Lineage) -> None:
        await asyncio.sleep(rng.uniform(0, 0.005))
        await gateway.look()

    before, latest = bundles
    for _ in range(40):
        register(redis, "tiny", before.revision, before.text)
        turning = [asyncio.create_task(look(gateway)) for gateway in gateways]
        await asyncio.sleep(rng.uniform(0, 0.01))
        register(redis, "tiny", latest.revision, latest.text)
        await asyncio.gather(*turning, *(look(gateway) for gateway in gateways))
    for gateway in gateways:
        await gateway.look()
        assert gateway.current.offer.bundle == latest.ref
    assert opened() == [latest]
    for gateway in gateways:
        await gateway.close()
    await registry.close()
