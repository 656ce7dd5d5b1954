"""The real service, HTTP and queue included, under an open loop of requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from service.bench.arrivals import Arrival, Outcome
from service.bench.client import Connection, Target, checked, connect, run

_DEADLINE_MS = 600_000


def run_service(port: int, classes: int, arrivals: Sequence[Arrival]) -> Outcome:
    """Post all `arrivals` to the service on `port`. Raises Unavailable for any error."""
    return run(_Visitors(port, classes).post(arrivals), _DEADLINE_MS / 1000)


class _Visitors:
    """Posts requests when they are due, on a connection that is idle or else on a new one."""

    def __init__(self, port: int, classes: int) -> None:
        self._port = port
        self._classes = classes
        self._opened: list[Connection] = []
        self._idle: list[Connection] = []
        self._began = 0.0
        self._outcome = Outcome()

    async def post(self, arrivals: Sequence[Arrival]) -> Outcome:
        """All of `arrivals`."""
        self._began = time.perf_counter()
        try:
            await asyncio.gather(*map(self._post, arrivals))
        finally:
            for connection in self._opened:
                connection.close()
        self._outcome.seconds = time.perf_counter() - self._began
        return self._outcome

    async def _post(self, one: Arrival) -> None:
        await asyncio.sleep(max(0.0, self._began + one.at_s - time.perf_counter()))
        class_id = one.number % self._classes
        body = {"class_id": class_id, "seed": one.number, "steps": one.steps, "deadline_ms": _DEADLINE_MS}
        connection = await self._connection()
        checked(*await connection.post(Target(self._port, "/generate", body).request()))
        self._outcome.latencies[one] = time.perf_counter() - self._began - one.at_s
        self._idle.append(connection)

    async def _connection(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).usable:
                return connection
        connection = await connect(self._port)
        self._opened.append(connection)
        return connection
