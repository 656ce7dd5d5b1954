"""The system under test: Redis, gateways and workers as processes, with a proxy wherever two of them meet."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from redis import asyncio as aioredis
from redis.exceptions import RedisError

from models.bundle import MANIFEST, open_bundle
from service.chaos.http_client import Broken, HttpClient
from service.chaos.journal import Journal, Memory, now
from service.chaos.process import Supervised, clean_environment, eventually
from service.chaos.proxy import Dial, Mode, Proxy, Streams
from service.chaos.redis_node import RedisNode
from service.errors import Unavailable
from service.jobs.keys import Keys

BUNDLE = "fruit"
_START_S = 60.0
_MEMORY_PERIOD_S = 1.0


@dataclass(frozen=True)
class Shape:
    """How large the system is, and how fast."""

    gateways: int = 2
    workers: int = 3
    slots: int = 6
    step_s: float = 0.025
    lease_s: float = 1.5
    drain_s: float = 3.0
    open_jobs: int = 40
    """Few enough for an overload to reach it on a fast machine too."""
    result_ttl_s: float = 120.0
    mutant: str = ""
    fsync: str = "always"

    def environment(self) -> dict[str, str]:
        """What every process is told."""
        settings = {
            "RUNTIME": "noop",
            "SLOTS": self.slots,
            "LEASE_S": self.lease_s,
            "DRAIN_S": self.drain_s,
            "OPEN_JOBS": self.open_jobs,
            "RESULT_TTL_S": self.result_ttl_s,
        }
        more = {"CHAOS_MUTANT": self.mutant, "CHAOS_STEP_S": str(self.step_s)}
        return {
            **clean_environment(),
            **{f"MASKBIT_{key}": str(value) for key, value in settings.items()},
            **more,
        }


class Cluster:
    """Everything that runs, by name: `redis`, `gateway-0`, …, `worker-0`, …

    `links`: the proxy between each of them and Redis; `fronts`: the one before each gateway. `revisions`: the
    key names of each revision of the model, the newest last.
    """

    def __init__(self, shape: Shape, folder: Path, journal: Journal) -> None:
        self.shape = shape
        self.journal = journal
        self.folder = folder
        self.redis = RedisNode(folder, journal, fsync=shape.fsync)
        self._place = folder / "model"
        self.revisions: list[Keys] = []
        self._write_revision()
        self.gateways = [f"gateway-{k}" for k in range(shape.gateways)]
        self.workers = [f"worker-{k}" for k in range(shape.workers)]
        self.links = {name: Proxy(self.redis.dial) for name in (*self.gateways, *self.workers)}
        self._reserved = {name: _reserved() for name in self.gateways}
        self._ports = {name: int(holder.getsockname()[1]) for name, holder in self._reserved.items()}
        self.fronts = {name: Proxy(_dialer(port)) for name, port in self._ports.items()}
        self.processes: dict[str, Supervised] = {"redis": self.redis.process}
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start everything and wait until requests can be served. Raises Unavailable."""
        for proxy in (*self.links.values(), *self.fronts.values()):
            await proxy.start()
        self.redis.process.start()
        await self.redis.ready()
        for name in (*self.gateways, *self.workers):
            process = self.processes[name] = self._process(name)
            process.start()
        try:
            for name in (*self.workers, *self.gateways):
                await self.ready(name, _START_S)
        except TimeoutError:
            logs = "".join(self._end_of_log(name) for name in (*self.gateways, *self.workers))
            raise Unavailable(f"the processes were not ready within {_START_S:.0f} s{logs}") from None
        self._watch = asyncio.create_task(self._watch_memory())

    def _process(self, name: str) -> Supervised:
        link = f"redis://127.0.0.1:{self.links[name].port}/0"
        environment = {
            **self.shape.environment(),
            "MASKBIT_BUNDLE": str(self._place),
            "MASKBIT_REDIS_URL": link,
        }
        if name in self.workers:
            command = ["-m", "service.chaos.entry", "worker"]
            environment["CHAOS_TRAP"] = str(self.trap(name))
        else:
            # The product's own command, unless a mutant has to be patched in.
            command = ["-m", "service.chaos.entry" if self.shape.mutant else "maskbit_cli", "gateway"]
            environment["MASKBIT_PORT"] = str(self._ports[name])
        return Supervised(
            name, [sys.executable, *command], environment, self.folder / f"{name}.log", self.journal
        )

    def trap(self, worker: str) -> Path:
        """The file that names the line at which a worker is to die."""
        return self.folder / f"{worker}.trap"

    def _end_of_log(self, name: str) -> str:
        log = self.folder / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
        return f"; {name}: " + " | ".join(lines) if lines else ""

    async def ready(self, name: str, timeout_s: float) -> None:
        """Wait until the current process of that name works. Raises TimeoutError."""
        if name == "redis":
            await self.redis.ready()
            return
        check = self._worker_ready if name in self.workers else self._gateway_ready
        await eventually(partial(check, name), timeout_s)

    async def _gateway_ready(self, name: str) -> bool:
        client = HttpClient(self._ports[name])
        try:
            return (await client.request("GET", "/livez", timeout_s=1.0)).status == 200
        except Broken:
            return False
        finally:
            client.close()

    async def _worker_ready(self, name: str) -> bool:
        pids = [await self._pids_with(keys) for keys in self.revisions]
        return any(self.processes[name].pid in one for one in pids)

    async def _pids_with(self, keys: Keys) -> set[int]:
        """The living workers of one revision."""
        with suppress(RedisError, OSError):
            async with aioredis.Redis.from_url(self.redis.url, socket_timeout=2.0) as redis:
                names: Any = await redis.zrange(keys.workers, 0, -1)
                texts = await redis.mget(names) if names else []
                return {json.loads(text)["pid"] for text in texts if text is not None}
        return set()

    async def publish(self, timeout_s: float) -> None:
        """Replace the bundle, and wait until a worker serves the new revision. Raises TimeoutError."""
        keys = self._write_revision()

        async def is_served() -> bool:
            return bool(await self._pids_with(keys))

        await eventually(is_served, timeout_s)

    def _write_revision(self) -> Keys:
        """Another revision of the bundled model, for a runtime that needs no weights."""
        number = len(self.revisions)
        manifest = replace(open_bundle(BUNDLE).manifest, provenance={"revision": number}, files={})
        self._place.mkdir(exist_ok=True)
        file = self._place / "new"
        file.write_text(manifest.to_json())
        file.replace(self._place / MANIFEST)
        keys = Keys(manifest.name, open_bundle(str(self._place)).revision)
        self.revisions.append(keys)
        return keys

    async def heal(self) -> None:
        """Take every fault back and wait until everything works."""
        self.redis.disk.slow(0)
        for proxy in (*self.links.values(), *self.fronts.values()):
            proxy.turn(Mode.CLEAN)
        for name in self.workers:
            self.trap(name).unlink(missing_ok=True)
        for process in self.processes.values():
            process.resume()
            process.send(signal.SIGCONT)
        for name in self.processes:
            await self.ready(name, _START_S)

    async def stop(self) -> None:
        """End everything, gateways first."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        for names in (self.gateways, self.workers):
            await asyncio.gather(*(self.processes[name].stop() for name in names if name in self.processes))
        await self.redis.stop()
        for proxy in (*self.links.values(), *self.fronts.values()):
            await proxy.stop()
        for holder in self._reserved.values():
            holder.close()

    async def _watch_memory(self) -> None:
        while True:
            for name, process in self.processes.items():
                if pid := process.pid:
                    with suppress(psutil.Error):
                        self.journal.write(Memory(now(), name, pid, psutil.Process(pid).memory_info().rss))
            await asyncio.sleep(_MEMORY_PERIOD_S)


def _dialer(port: int) -> Dial:
    async def dial() -> Streams:
        return await asyncio.open_connection("127.0.0.1", port)

    return dial


def _reserved() -> socket.socket:
    """A loopback port that a gateway can listen on, and nobody else takes between its lives."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder
