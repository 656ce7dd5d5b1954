"""Connections to Redis: no retries behind our back, and its errors told apart."""

import asyncio
import logging
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import hiredis
from redis import Redis
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import (
    InvalidResponse,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from service.errors import ServiceError, Unavailable
from service.jobs import scripts
from service.jobs.line import Line

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

BLOCK_MAX_S = 5.0
"""Longest blocking read."""
_BLOCKING_TIMEOUT_S = BLOCK_MAX_S + 2.0
_CALL_TIMEOUT_S = 3.0
_CALL_TRIES = 3
_CONNECTIONS = 4
_TRANSIENT = (
    *("LOADING", "MISCONF", "READONLY", "OOM", "MASTERDOWN", "NOREPLICAS", "BUSY", "CLUSTERDOWN", "TRYAGAIN"),
    # A blocking read whose stream was deleted.
    *("UNBLOCKED", "NOGROUP"),
    # Inside a script, where the user may not do what it does.
    "The user executing the script",
)

# After these nobody knows whether the call was carried out.
_IN_DOUBT = (RedisConnectionError, RedisTimeoutError, OSError)

TROUBLE = (RedisError, OSError, RuntimeError)
"""What a call may raise; uvloop says RuntimeError when a closed connection is written to."""


def is_transient(error: Exception) -> bool:
    """Whether the same call may succeed later without anybody changing the program."""
    if _in_doubt(error) or isinstance(error, (OutOfMemoryError, ReadOnlyError, NoPermissionError)):
        return True
    # Inside a script Redis 6.2 wraps the error in a sentence.
    return isinstance(error, ResponseError) and any(word in str(error) for word in _TRANSIENT)


def _in_doubt(error: Exception) -> bool:
    return isinstance(error, _IN_DOUBT) or (isinstance(error, RuntimeError) and "closed" in str(error))


def describe(error: BaseException) -> str:
    """One line about an error of Redis."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def backoff_s(failures: int) -> float:
    """Full-jitter delay in seconds after `failures` >= 1 failures: up to 40 ms at first, up to 2 s later."""
    return random.uniform(0.0, min(2.0, 0.02 * 2.0 ** min(failures, 10)))


def _greet(connection: Any) -> None:
    """What redis-py does when it is connected; an error there is none of what the connection is for."""
    try:
        connection.on_connect()
    except (ResponseError, InvalidResponse) as error:
        raise RedisConnectionError(str(error)) from error


async def _greet_async(connection: Any) -> None:
    try:
        await connection.on_connect()
    except (ResponseError, InvalidResponse) as error:
        raise RedisConnectionError(str(error)) from error


def connect(url: str, name: str | None = None) -> Redis:
    """A synchronous client; its pool gives each thread a connection of its own, called `name` in Redis."""
    return Redis.from_url(
        url,
        protocol=2,
        socket_timeout=_BLOCKING_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        client_name=name,
        redis_connect_func=_greet,
    )


def connect_async(url: str, connections: int, timeout_s: float) -> aioredis.Redis:
    """An asyncio client with at most so many connections; callers beyond them wait up to `timeout_s`."""
    pool = aioredis.BlockingConnectionPool.from_url(
        url,
        protocol=2,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=AsyncRetry(NoBackoff(), 0),
        max_connections=connections,
        timeout=timeout_s,
        redis_connect_func=_greet_async,
    )
    return aioredis.Redis.from_pool(pool)


def open_line(url: str, timeout_s: float = _BLOCKING_TIMEOUT_S) -> Line:
    """A line, which connects when it is first needed."""
    pool: Any = aioredis.ConnectionPool.from_url(
        url,
        protocol=2,
        socket_timeout=None,
        retry=AsyncRetry(NoBackoff(), 0),
        redis_connect_func=_greet_async,
    )
    return Line(pool.make_connection(), timeout_s)


class ThreadLink:
    """Calls of a worker, by any of its threads: each has a connection of its own, called `name` in Redis.

    `keys` are the KEYS of all scripts. Trouble with Redis is raised as it comes: RedisError, OSError.
    """

    def __init__(self, url: str, keys: Sequence[str], name: str) -> None:
        self.redis = connect(url, name=name)
        self._keys = keys
        self._mine = threading.local()

    def close(self) -> None:
        """Drop the connections, once no thread uses them any more."""
        self.redis.close()

    def run_all(self, name: str, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """Run the script `name` several times in one round trip; the first error is raised at the end."""
        head = (len(self._keys), *self._keys)
        try:
            return self._exchange([("EVALSHA", scripts.digest(name), *head, *args) for args in calls])
        except NoScriptError:
            return self._exchange([("EVAL", scripts.source(name), *head, *args) for args in calls])

    def call(self, *command: Any) -> Any:
        """Any other command; the answer is raw."""
        return self._exchange([command])[0]

    def _exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        connection = self._connection()
        connection.send_packed_command([hiredis.pack_command(one) for one in commands], check_health=False)
        replies, error = [], None
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except ResponseError as exc:
                error = error or exc
        if error is not None:
            raise error
        return replies

    def _connection(self) -> Any:
        """This thread's connection, ready to send."""
        connection = getattr(self._mine, "connection", None)
        if connection is None:
            connection = self._mine.connection = self.redis.connection_pool.get_connection()
            return connection
        connection.connect()
        try:
            broken = connection.can_read(timeout=0)
        except (RedisError, OSError):
            broken = True
        if broken:
            connection.disconnect()
            connection.connect()
        return connection


class AsyncLink:
    """Calls of a gateway; `keys` are the KEYS of all its scripts, which share one connection.

    Every call may be repeated safely, and is, a few times, when its answer is lost. A call that was sent goes
    on when the task that waits for it is cancelled: otherwise the connection would carry its answer to the
    next caller. Trouble with Redis is raised as Unavailable.
    """

    def __init__(self, url: str, keys: Sequence[str]) -> None:
        self.redis = connect_async(url, _CONNECTIONS, _CALL_TIMEOUT_S)
        self._keys = keys
        self._line = open_line(url, _CALL_TIMEOUT_S)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._told = ""
        self._closing = False

    async def close(self) -> None:
        """Let the calls in flight end, which are not repeated any more, then drop the connections."""
        self._closing = True
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._line.close()
        await self.redis.aclose()

    def spawn(self, work: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        """Run `work` in a task that `close` waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def outlive(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Await `work`, which goes on to its end when the caller is cancelled."""
        task = self.spawn(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_look_at)
            raise

    async def run(self, name: str, *args: Any) -> Any:
        """Run the script `name`."""
        return await self._try(lambda: self._run(name, (len(self._keys), *self._keys, *args)))

    async def _run(self, name: str, parts: Sequence[Any]) -> Any:
        try:
            return await self._line.call("EVALSHA", scripts.digest(name), *parts)
        except NoScriptError:
            return await self._line.call("EVAL", scripts.source(name), *parts)

    async def call(self, make: Callable[[], Awaitable[_T]]) -> _T:
        """Await `make()` to its end, also when the caller is cancelled."""
        return await self.outlive(self._try(make))

    async def _try(self, make: Callable[[], Awaitable[_T]]) -> _T:
        failures = 0
        while True:
            try:
                return await make()
            except TROUBLE as error:
                if not is_transient(error):
                    raise
                failures += 1
                if self._closing or failures == _CALL_TRIES or not _in_doubt(error):
                    self._tell(error)
                    raise Unavailable("the job queue does not answer", retry_after_s=2.0) from error
            await asyncio.sleep(backoff_s(failures))

    def _tell(self, error: Exception) -> None:
        """Tell the log, since the client need not know where Redis is: a refusal once until another comes.

        That Redis is away is said by those who look after it all the time.
        """
        text = describe(error)
        quiet = _in_doubt(error) or text == self._told
        if not quiet:
            self._told = text
        _log.log(logging.DEBUG if quiet else logging.INFO, "a call is given up: %s", text)


def _look_at(task: asyncio.Task[Any]) -> None:
    """What `task` has raised, for whoever waited for it has left."""
    if not task.cancelled() and (error := task.exception()) and not isinstance(error, ServiceError):
        _log.error("a call that nobody waits for failed", exc_info=error)
