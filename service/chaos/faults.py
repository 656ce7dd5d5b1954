"""Does to the cluster what the plan says, one fault at a time for each target, and writes it down."""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

from service.chaos.cluster import Cluster
from service.chaos.fault_plan import OVERLOAD, OVERLOAD_S, PlannedFault
from service.chaos.journal import Fault, now
from service.chaos.proxy import Mode

_BACK_S = 30.0
_LINE_S = 4.0
"""How long a worker has to come to a line before it is killed anywhere."""
_DRAIN_MORE_S = 15.0
_SLOW_CLIENTS = 30


class Injector:
    """Runs planned faults against a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self, faults: Sequence[PlannedFault]) -> None:
        """Inject every fault at its time, or when its target has recovered from the one before."""
        started = now()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, started + fault.at_s - now()))
                group.create_task(self._inject(fault))

    async def _inject(self, fault: PlannedFault) -> None:
        async with self._turns[fault.target]:
            began = now()
            kind = fault.kind
            family, _, manner = kind.partition("-")
            if fault.kind == OVERLOAD:
                await asyncio.sleep(OVERLOAD_S)
            elif family == "redis":
                await self._redis(manner, fault.size)
            elif family in ("link", "front"):
                await self._proxy(family, manner, fault)
            elif kind == "publish":
                with suppress(TimeoutError):
                    await self._cluster.publish(_BACK_S)
            elif family == "slow":
                await self._slow_clients(fault)
            elif not await self._process(manner, fault):
                kind = "worker-kill"
            self._cluster.journal.write(Fault(began, now(), kind, fault.target))

    async def _process(self, manner: str, fault: PlannedFault) -> bool:
        """False when the process did not come to the line and was killed anywhere."""
        process = self._cluster.processes[fault.target]
        life = process.starts
        if manner == "stop":
            process.send(signal.SIGSTOP)
            await asyncio.sleep(self._cluster.shape.lease_s * (1.2 + fault.size))
            process.send(signal.SIGCONT)
            return True
        reached = True
        if manner == "kill":
            process.send(signal.SIGKILL)
        elif manner == "term":
            process.send(signal.SIGTERM)
            if not await process.gone(life, self._cluster.shape.drain_s + _DRAIN_MORE_S):
                process.send(signal.SIGKILL)
        else:
            reached = await self._kill_at(manner.removeprefix("kill-at-"), fault.target)
        await process.gone(life, _BACK_S)
        with suppress(TimeoutError):
            await self._cluster.ready(fault.target, _BACK_S)
        return reached

    async def _kill_at(self, line: str, worker: str) -> bool:
        process, trap = self._cluster.processes[worker], self._cluster.trap(worker)
        life = process.starts
        trap.write_text(line)
        reached = await process.gone(life, _LINE_S)
        if not reached:
            trap.unlink(missing_ok=True)
            process.send(signal.SIGKILL)
        return reached

    async def _redis(self, manner: str, size: float) -> None:
        redis, lease_s = self._cluster.redis, self._cluster.shape.lease_s
        if manner == "kill":
            await redis.kill()
        elif manner == "term":
            await redis.terminate()
        elif manner == "truncated":
            await redis.truncate(1 + int(size * 60))
        elif manner == "emptied":
            await redis.wipe()
        elif manner == "full-disk":
            await redis.fill_disk(_LINE_S)
        elif manner == "slow-disk":
            redis.disk.slow(int(50 + 350 * size))
            await asyncio.sleep(2.0)
            redis.disk.slow(0)
        else:
            redis.process.send(signal.SIGSTOP)
            await asyncio.sleep(lease_s * (1.2 + size))
            redis.process.send(signal.SIGCONT)

    async def _proxy(self, family: str, manner: str, fault: PlannedFault) -> None:
        proxy = (self._cluster.links if family == "link" else self._cluster.fronts)[fault.target]
        proxy.turn(Mode(manner), delay_s=0.01 + 0.2 * fault.size)
        await asyncio.sleep(0.3 + 1.7 * fault.size)
        proxy.turn(Mode.CLEAN)

    async def _slow_clients(self, fault: PlannedFault) -> None:
        """Connections that never finish their headers."""
        port = self._cluster.fronts[fault.target].port
        writers = []
        for _ in range(_SLOW_CLIENTS):
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"POST /generate HTTP/1.1\r\nHost: slow\r\nX-Slow: ")
                writers.append(writer)
        for _ in range(20):
            await asyncio.sleep(0.1)
            for writer in writers:
                writer.write(b"x")
        for writer in writers:
            writer.transport.abort()
