"""A real gateway on a loopback port over a real Redis, and a worker thread with deterministic answers."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image

from models.bundle import Bundle
from service.gateway.app import create_app
from service.gateway.http_server import GatewayServer, listen, make_server
from service.jobs.consumer import Consumer
from service.jobs.job import ClaimedJob
from service.jobs.keys import Keys
from service.jobs.payloads import DetokenizeJob, GenerateJob, Pictures, TokenGrids, TokenizeJob
from service.settings import Settings


@dataclass
class Gateway:
    """A gateway that runs in a thread, with a client for it."""

    app: FastAPI
    server: GatewayServer
    settings: Settings
    bundle: Bundle
    port: int
    client: httpx.Client

    @property
    def keys(self) -> Keys:
        return Keys(self.bundle.manifest.name, self.bundle.revision)


@contextmanager
def gateway_running(bundle: Bundle, redis_url: str, *others: Bundle, **changes: Any) -> Iterator[Gateway]:
    """A gateway in a thread of its own, with `others` beside its first bundle; `changes` are settings."""
    settings = Settings(**{"redis_url": redis_url, "host": "127.0.0.1", "port": 0, "drain_s": 5, **changes})
    app = create_app(settings, [bundle, *others])
    server = make_server(app, settings, lambda: setattr(app.state.desk, "draining", True))
    with listen(settings.host, settings.port) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                until(lambda: server.started)
                yield Gateway(app, server, settings, bundle, port, client)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the gateway did not end"


def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """The first true value of `condition`; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError("it did not happen in time")


@dataclass
class FakeWorker:
    """Claims real jobs and answers from their payloads alone.

    A closed `gate` keeps it from finishing; `progress` is published before it waits there.
    """

    gateway: Gateway
    redis_url: str
    gate: threading.Event = field(default_factory=threading.Event)
    progress: list[dict[str, Any]] = field(default_factory=list)
    answer: Callable[[Consumer, ClaimedJob], object] | None = None
    claimed: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    bundle: Bundle | None = None
    """Another one than the gateway's first."""
    _ending: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self.gate.set()
        limits = self.gateway.settings.queue_limits()
        self.consumer = Consumer(self.redis_url, self.keys, f"fake-{id(self)}", limits)
        self._announce()
        self._threads = [threading.Thread(target=one) for one in (self._work, self._watch)]
        for thread in self._threads:
            thread.start()

    @property
    def served(self) -> Bundle:
        return self.bundle or self.gateway.bundle

    @property
    def keys(self) -> Keys:
        return Keys(self.served.manifest.name, self.served.revision)

    def _announce(self) -> None:
        self.consumer.announce({"runtime": "noop", "device": "cpu", "bundle": self.served.ref})

    def stop(self) -> None:
        self._ending.set()
        self.gate.set()
        for thread in self._threads:
            thread.join(10)
        self.consumer.retire()
        self.consumer.close()

    def _work(self) -> None:
        while not self._ending.is_set():
            job = self.consumer.claim(generate=True, codec=True, block_s=0.1)
            if job is None:
                continue
            self.claimed.append(job.id)
            for data in self.progress:
                self.consumer.publish(job.id, json.dumps({"event": "progress", "data": data}).encode())
            self.gate.wait(20)
            (self.answer or finish)(self.consumer, job)

    def _watch(self) -> None:
        while not self._ending.is_set():
            self.stopped += self.consumer.hints(0.1)
            self._announce()


def finish(consumer: Consumer, job: ClaimedJob) -> None:
    """The deterministic answer of a job."""
    consumer.finish(job, result_of(job.kind, job.payload))


def result_of(kind: str, payload: bytes) -> bytes:
    """Pictures whose colour tells the seed; tokens that count up."""
    if kind == "generate":
        drawing = GenerateJob.unpack(payload)
        files = tuple(file_of(seed, drawing.format) for seed in drawing.seeds)
        steps = drawing.sampling.steps
        return Pictures(files, steps, 1.5, drawing.format, drawing.class_ids, drawing.seeds).pack()
    if kind == "detokenize":
        grids = DetokenizeJob.unpack(payload)
        files = tuple(file_of(int(grid.sum()), grids.format) for grid in grids.array())
        return Pictures(files, 0, 0.5, grids.format, (), ()).pack()
    job = TokenizeJob.unpack(payload)
    means = job.images().reshape(job.count, -1).mean(1).astype(np.int64)
    grids = (np.arange(64).reshape(1, 8, 8) + means[:, None, None]) % 64
    return TokenGrids.of(grids).pack()


def file_of(value: int, file_format: str) -> bytes:
    """A picture (or tokens) that tells `value`."""
    if file_format == "tokens":
        return TokenGrids.of(np.full((1, 8, 8), value % 64, dtype=np.int64)).pack()
    pixels = np.full((16, 16, 3), value % 256, dtype=np.uint8)
    file = io.BytesIO()
    if file_format == "npy":
        np.save(file, pixels)
    else:
        Image.fromarray(pixels).save(file, file_format.upper())
    return file.getvalue()
