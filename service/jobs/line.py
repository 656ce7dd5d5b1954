"""One connection to Redis that many callers share.

What they ask for while the answers to earlier commands are on their way goes out together: one system call,
and one fsync of Redis, for many commands.
"""

import asyncio
from collections import deque
from itertools import islice
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

_BATCH = 32


class Line:
    """`timeout_s` bounds each exchange of up to 32 commands, connecting included.

    When one fails, so does everything that waits; the next call connects anew.
    """

    def __init__(self, connection: AbstractConnection, timeout_s: float) -> None:
        self._connection: Any = connection
        self._timeout_s = timeout_s
        # In the order of their answers; the first ones are sent.
        self._calls: deque[tuple[bytes, asyncio.Future[Any]]] = deque()
        self._work: asyncio.Task[None] | None = None
        self._closed = False

    def call(self, *command: str | bytes | int | float) -> asyncio.Future[Any]:
        """Send a command, which is carried out even if nobody waits for the answer any more.

        The answer may be an error: RedisError, OSError, RuntimeError.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._closed:
            answer.set_exception(RedisConnectionError("the connection is closed"))
            return answer
        # Its stub allows tuples of one only.
        self._calls.append((hiredis.pack_command(command), answer))  # type: ignore[arg-type]
        if self._work is None:
            self._work = asyncio.create_task(self._serve())
        return answer

    async def close(self) -> None:
        """Drop the connection; whoever still waits gets an error."""
        self._closed = True
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        await self._connection.disconnect()

    async def _serve(self) -> None:
        error: Exception = RedisConnectionError("the connection is closed")
        try:
            while self._calls:
                async with asyncio.timeout(self._timeout_s):
                    await self._exchange(min(len(self._calls), _BATCH))
        except Exception as exc:
            error = exc
        finally:
            if self._calls:
                # An answer that is late must not reach the next caller.
                await self._connection.disconnect(nowait=True)
            while self._calls:
                _, answer = self._calls.popleft()
                if not answer.done():
                    answer.set_exception(error)
            self._work = None

    async def _exchange(self, count: int) -> None:
        await self._connection.connect()
        commands = [command for command, _ in islice(self._calls, count)]
        await self._connection.send_packed_command(commands, check_health=False)
        for _ in range(count):
            reply = await self._reply()
            _, answer = self._calls.popleft()
            if answer.done():
                continue
            if isinstance(reply, ResponseError):
                answer.set_exception(reply)
            else:
                answer.set_result(reply)

    async def _reply(self) -> Any:
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            return error
