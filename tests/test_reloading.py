"""A worker takes over new revisions while it serves, and processes are replaced: nothing is lost."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from redis import Redis
from safetensors.torch import load_file
from torch import Tensor

from models.bundle import GENERATOR_WEIGHTS, MANIFEST, TOKENIZER_WEIGHTS, Bundle, Manifest, open_bundle
from models.bundle_writer import write_bundle
from models.drawing import draw
from models.runtime.torch_runtime import TorchRuntime
from service.bench.running import free_port
from service.jobs.redis_server import RedisServer
from service.worker.bundle_watch import BundleWatch
from tests.gateway_harness import until
from tests.service_fixtures import start, stop

STEPS = 4
LEASE_S = 2


def weights_of(bundle: Bundle, revision: int) -> dict[str, dict[str, Tensor]]:
    """The weights of `bundle`, with a bias of the generator that belongs to `revision`."""
    weights = {name: load_file(bundle.path / name) for name in bundle.manifest.files}
    generator = weights[GENERATOR_WEIGHTS]
    key = next(key for key in sorted(generator) if key.endswith("bias"))
    noise = torch.Generator().manual_seed(revision)
    generator[key] = generator[key] + torch.randn(generator[key].shape, generator=noise)
    return weights


def publish(bundle: Bundle, place: Path, revision: int) -> Bundle:
    """Replace the bundle at `place` as `maskbit train` does."""
    manifest = replace(bundle.manifest, files={}, provenance={"revision": revision})
    return write_bundle(place, manifest, weights_of(bundle, revision))


@dataclass
class Cluster:
    """Redis, gateways and workers as processes of their own, on one bundle folder."""

    folder: Path
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        process = start(*arguments, log=self.folder / "log", **{**self.environment, **environment})
        self.processes.append(process)
        return process

    def gateway(self, port: int) -> subprocess.Popen[bytes]:
        """A gateway that listens."""
        process = self.start("gateway", "--port", str(port))
        self._await(process, lambda: answers(port, "/livez"))
        return process

    def worker(self, port: int, **environment: str) -> subprocess.Popen[bytes]:
        """A worker that is ready, as the gateway at `port` says."""
        process = self.start("worker", **environment)
        self._await(process, lambda: process.pid in {one["pid"] for one in workers(port)})
        return process

    def _await(self, process: subprocess.Popen[bytes], ready: Callable[[], object]) -> None:
        until(lambda: process.poll() is not None or ready(), 60)
        assert process.poll() is None, self.log


def answers(port: int, path: str) -> httpx.Response | None:
    """The answer with status 200, if there is one."""
    try:
        reply = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10)
    except httpx.TransportError:
        return None
    return reply if reply.status_code == 200 else None


def workers(port: int) -> list[dict[str, Any]]:
    reply = answers(port, "/readyz")
    return list(reply.json()["workers"]) if reply else []


@pytest.fixture
def place(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """Where the bundle of a cluster is, at revision 0."""
    publish(tiny_bundle, tmp_path / "model", 0)
    return tmp_path / "model"


@pytest.fixture
def cluster(place: Path, tmp_path: Path) -> Iterator[Cluster]:
    redis = RedisServer(tmp_path / "state")
    redis.start()
    environment = {
        "MASKBIT_REDIS_URL": redis.url,
        "MASKBIT_BUNDLE": str(place),
        "MASKBIT_LEASE_S": str(LEASE_S),
        "MASKBIT_DETERMINISTIC": "strict",
        "MASKBIT_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    running = Cluster(tmp_path, environment)
    yield running
    for process in running.processes:
        process.kill()
        process.wait()
    redis.stop()


def body_of(seed: int) -> dict[str, Any]:
    return {"class_id": seed % 5, "seed": seed, "steps": STEPS, "format": "tokens"}


def key_of(seed: int) -> dict[str, str]:
    return {"Idempotency-Key": f"seed-{seed}"}


@dataclass
class Client:
    """Asks one picture after the other until it is told to stop, at whichever gateway answers."""

    ports: list[int]
    first_seed: int
    patient: bool = False
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        seed = self.first_seed
        with httpx.Client(timeout=60) as http:
            while not self.enough.is_set():
                self.answers[seed] = self._ask(http, seed)
                seed += 1

    def _ask(self, http: httpx.Client, seed: int) -> dict[str, Any]:
        """Every other request is a job that is looked at later; a patient client repeats what went wrong."""
        body = body_of(seed)
        headers = key_of(seed) if self.patient else {}
        for port in until(lambda: self.ports) * 100:
            try:
                url = f"http://127.0.0.1:{port}"
                if seed % 2 and not self.patient:
                    return self._by_job(http, url, body)
                reply = http.post(f"{url}/generate", json=body, headers=headers)
                if reply.status_code == 200:
                    return dict(reply.json())
                self.refusals.append(reply.text)
            except httpx.TransportError as exc:
                self.refusals.append(f"{type(exc).__name__}: {exc}")
            assert self.patient, self.refusals
            time.sleep(0.05)
        raise AssertionError(f"nobody answered: {self.refusals[-3:]}")

    def _by_job(self, http: httpx.Client, url: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = http.post(f"{url}/jobs", json={"kind": "generate", **body})
        assert reply.status_code == 202, reply.text
        place = url + reply.headers["location"]
        until(lambda: http.get(place).status_code != 202, 60)
        return dict(http.get(place).json()["result"])


@contextmanager
def load(ports: list[int], clients: int = 3, *, patient: bool = False) -> Iterator[list[Client]]:
    """Clients at work; those that failed fail the test."""
    crowd = [Client(ports, 10_000 * k, patient) for k in range(1, clients + 1)]
    failures: list[BaseException] = []

    def run(client: Client) -> None:
        try:
            client.run()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(client,)) for client in crowd]
    for thread in threads:
        thread.start()
    try:
        yield crowd
    finally:
        for client in crowd:
            client.enough.set()
        for thread in threads:
            thread.join(90)
    assert not failures, failures


def await_more(crowd: list[Client]) -> None:
    """Until every client got two more answers."""
    enough = [len(client.answers) + 2 for client in crowd]
    until(lambda: all(len(one.answers) >= n for one, n in zip(crowd, enough, strict=True)), 60)


def serves(port: int, bundle: Bundle) -> bool:
    reply = answers(port, "/info")
    return reply is not None and reply.json()["bundle"] == bundle.ref


def test_three_revisions_are_published_under_load_and_every_answer_is_that_of_its_revision(
    cluster: Cluster, place: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    port = free_port()
    cluster.gateway(port)
    pids = {cluster.worker(port).pid for _ in range(2)}
    published = [publish(tiny_bundle, tmp_path / "copies" / "0", 0)]
    with load([port]) as crowd:
        await_more(crowd)
        for revision in (1, 2, 3):
            published.append(publish(tiny_bundle, tmp_path / "copies" / str(revision), revision))
            assert publish(tiny_bundle, place, revision).ref == published[-1].ref
            until(lambda: serves(port, published[-1]), 40)
            # Both workers, and nothing is left of the revision before.
            until(lambda: [one["bundle"] for one in workers(port)] == 2 * [published[-1].ref], 40)
    got = {seed: answer for client in crowd for seed, answer in client.answers.items()}
    assert {one["pid"] for one in workers(port)} == pids, "no process ended"
    by_revision = {one.ref: TorchRuntime(one, device="cpu", strict=True) for one in published}
    assert {answer["bundle"] for answer in got.values()} == set(by_revision)
    for ref, runtime in by_revision.items():
        seeds = [seed for seed, answer in got.items() if answer["bundle"] == ref]
        sampling = replace(tiny_bundle.manifest.sampling, steps=STEPS)
        expected = draw(runtime, tiny_bundle.manifest, sampling, [seed % 5 for seed in seeds], seeds)
        drawn = [got[seed]["images"][0]["indices"] for seed in seeds]
        np.testing.assert_array_equal(np.array(drawn), expected)
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert f'maskbit_jobs_total{{kind="generate",model="tiny",outcome="done"}} {len(got)}.0' in text
    assert 'maskbit_jobs_total{kind="generate",model="tiny",outcome="failed"} 0.0' in text
    assert "Traceback" not in cluster.log


def test_a_revision_that_cannot_be_loaded_changes_nothing_and_sighup_tries_it_again(
    cluster: Cluster, place: Path, tiny_bundle: Bundle
) -> None:
    port = free_port()
    cluster.gateway(port)
    worker = cluster.worker(port)
    before = open_bundle(str(place))
    after = publish(tiny_bundle, place, 1)
    good = (place / GENERATOR_WEIGHTS).read_bytes()
    (place / GENERATOR_WEIGHTS).write_bytes(good[:-4])
    with load([port], clients=1) as crowd:
        until(lambda: f"revision {after.revision} cannot be served" in cluster.log, 40)
        assert serves(port, before)
        (place / GENERATOR_WEIGHTS).write_bytes(good)
        worker.send_signal(signal.SIGHUP)
        until(lambda: serves(port, after), 40)
    assert {answer["bundle"] for answer in crowd[0].answers.values()} <= {before.ref, after.ref}
    (line,) = (line for line in cluster.log.splitlines() if "cannot be served" in line)
    assert "is damaged" in line
    assert worker.poll() is None
    assert "Traceback" not in cluster.log


def test_gateways_and_workers_are_replaced_one_by_one_under_load(cluster: Cluster) -> None:
    ports = [free_port(), free_port()]
    gateways = {port: cluster.gateway(port) for port in ports}
    worker = cluster.worker(ports[0], MASKBIT_RUNTIME="noop")
    with load(ports, patient=True) as crowd:
        await_more(crowd)
        cluster.worker(ports[0], MASKBIT_RUNTIME="noop")
        assert stop(worker) == 0
        for port, gateway in gateways.items():
            assert stop(gateway) == 0
            cluster.gateway(port)
            await_more(crowd)
    answers = {seed: answer for client in crowd for seed, answer in client.answers.items()}
    assert all([image["seed"] for image in answer["images"]] == [seed] for seed, answer in answers.items())
    with httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}") as http:
        for seed in sorted(answers)[:: max(1, len(answers) // 50)]:
            again = http.post("/generate", json=body_of(seed), headers=key_of(seed)).json()
            assert again == answers[seed], "the same key led to another job"
    assert "Traceback" not in cluster.log


def test_the_last_worker_of_an_old_revision_ends_with_its_queue_and_not_before(
    cluster: Cluster, place: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """As in a cluster whose images hold the bundle: a new worker comes, then the old one goes."""
    cluster.environment["MASKBIT_LEASE_S"] = "8"
    port = free_port()
    cluster.gateway(port)
    old = cluster.worker(port, MASKBIT_RUNTIME="noop")
    before, after = open_bundle(str(place)), publish(tiny_bundle, tmp_path / "next", 1)
    old.send_signal(signal.SIGSTOP)
    body = {"kind": "generate", "class_id": 0, "steps": STEPS, "format": "tokens"}
    url = f"http://127.0.0.1:{port}"
    # Within the lease of a worker that stands still.
    with httpx.Client(base_url=url) as http:
        locations = [http.post("/jobs", json=body).headers["location"] for _ in range(40)]
    cluster.worker(port, MASKBIT_RUNTIME="noop", MASKBIT_BUNDLE=str(after.path))
    until(lambda: serves(port, after))
    old.send_signal(signal.SIGTERM)
    old.send_signal(signal.SIGCONT)
    assert old.wait(40) == 0
    answers = [httpx.get(url + location) for location in locations]
    assert [reply.status_code for reply in answers] == [200] * 40
    assert {reply.json()["result"]["bundle"] for reply in answers} == {before.ref}


def with_another_tokenizer(bundle: Bundle, place: Path) -> Bundle:
    """A next revision of `bundle`, to which its tokens mean nothing."""
    weights = weights_of(bundle, 1)
    tokenizer = weights[TOKENIZER_WEIGHTS]
    key = next(key for key in sorted(tokenizer) if key.endswith("bias"))
    tokenizer[key] = tokenizer[key] + 1
    return write_bundle(place, replace(bundle.manifest, files={}), weights)


def test_jobs_whose_last_worker_was_killed_are_done_by_the_next_revision_where_they_mean_the_same(
    cluster: Cluster, place: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """As after an eviction in mid-rollout: nobody has the old weights any more."""
    port = free_port()
    cluster.gateway(port)
    old = cluster.worker(port)
    after = with_another_tokenizer(tiny_bundle, tmp_path / "next")
    old.send_signal(signal.SIGSTOP)
    url, seeds = f"http://127.0.0.1:{port}", list(range(10))
    with httpx.Client(base_url=url, timeout=60) as http:
        bodies = [{"kind": "generate", **body_of(seed)} for seed in seeds]
        drawings = [http.post("/jobs", json=body).headers["location"] for body in bodies]
        grid: list[list[int]] = np.zeros((2 * [tiny_bundle.manifest.grid]), dtype=int).tolist()
        decoding = http.post("/jobs", json={"kind": "detokenize", "indices": grid}).headers["location"]
        old.kill()
        cluster.worker(port, MASKBIT_BUNDLE=str(after.path))
        until(lambda: all(http.get(place).status_code != 202 for place in (*drawings, decoding)), 60)
        results = [http.get(place).json()["result"] for place in drawings]
        refusal = http.get(decoding).json()
    assert {result["bundle"] for result in results} == {after.ref}
    sampling = replace(tiny_bundle.manifest.sampling, steps=STEPS)
    runtime = TorchRuntime(after, device="cpu", strict=True)
    expected = draw(runtime, after.manifest, sampling, [seed % 5 for seed in seeds], seeds)
    np.testing.assert_array_equal([result["images"][0]["indices"] for result in results], expected)
    assert refusal["error"]["code"] == "unavailable", refusal
    assert "another job" in refusal["error"]["message"]
    assert f"{after.ref} does" in cluster.log
    assert "Traceback" not in cluster.log


def test_jobs_without_a_worker_are_done_and_found_though_redis_forgets_their_revision_twice(
    cluster: Cluster, place: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    port = free_port()
    cluster.gateway(port)
    old, before = cluster.worker(port), open_bundle(str(place))
    after = publish(tiny_bundle, tmp_path / "next", 1)
    old.send_signal(signal.SIGSTOP)
    url = f"http://127.0.0.1:{port}"
    body = {"kind": "generate", **body_of(0), "n": 4, "steps": 16}
    with (
        httpx.Client(base_url=url, timeout=60) as http,
        Redis.from_url(cluster.environment["MASKBIT_REDIS_URL"]) as redis,
    ):
        places = [http.post("/jobs", json=body).headers["location"] for _ in range(60)]
        old.kill()
        redis.flushall()
        until(lambda: cluster.log.count("is queued again") == len(places), 20)
        cluster.worker(port, MASKBIT_BUNDLE=str(after.path))
        until(lambda: f"{after.ref} does" in cluster.log, 30)
        redis.flushall()
        until(lambda: cluster.log.count("is queued again") > len(places), 20)
        until(lambda: f"{before.ref} has ended" in cluster.log, 90)
        found = [http.get(place).status_code for place in places]
    # What had ended before the second time is gone with Redis; what was queued again is not.
    assert found.count(200) >= cluster.log.count("is queued again") - len(places)
    assert set(found) <= {200, 404}
    assert "Traceback" not in cluster.log


@pytest.fixture
def plain(tmp_path: Path, tiny_manifest: Manifest) -> Callable[..., Bundle]:
    """Writes `bundle.json` alone, at one place."""

    def one(**changes: Any) -> Bundle:
        changes = {"provenance": {"number": uuid.uuid4().hex}, **changes}
        (tmp_path / MANIFEST).write_text(replace(tiny_manifest, **changes).to_json())
        return open_bundle(str(tmp_path))

    return one


def test_a_watch_sees_another_revision_and_nothing_else(plain: Callable[..., Bundle], tmp_path: Path) -> None:
    first = plain()
    watch = BundleWatch(str(tmp_path), first)
    assert watch.look() is None
    assert watch.look(asked=True) is None
    second = plain()
    assert watch.look() == second
    watch.current = second
    assert watch.look() is None
    (tmp_path / MANIFEST).unlink()
    assert watch.look() is None, "it is just being replaced"
    (tmp_path / MANIFEST).write_text(first.text)
    assert watch.look() == first, "back to the one before"


def test_what_cannot_be_served_is_said_once_and_tried_again_later(
    plain: Callable[..., Bundle], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = BundleWatch(str(tmp_path), plain())
    bad = plain()
    watch.refuse(bad.revision, "out of memory")
    assert watch.look() is None
    assert watch.look(asked=True) == bad
    watch.refuse(bad.revision, "out of memory")
    assert caplog.text.count("out of memory") == 1
    good = plain()
    assert watch.look() == good
    (tmp_path / MANIFEST).write_text("{")
    assert watch.look() is watch.look() is None
    assert caplog.text.count(MANIFEST) == 1


def test_a_bundle_of_another_name_is_another_model_and_refused(
    plain: Callable[..., Bundle], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = BundleWatch(str(tmp_path), plain())
    plain(name="other")
    assert watch.look() is None
    assert "'other', and this worker serves 'tiny'" in caplog.text
