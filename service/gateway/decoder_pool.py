"""The gateway's side of picture decoding: child processes that run `service/gateway/uploads.py`.

A child has one picture at a time, is confined and replaceable: one that dies, hangs or answers nonsense is
killed and started anew.
"""

import asyncio
import math
import os
import sys
from asyncio.subprocess import PIPE
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest, PayloadTooLarge, ServiceError, Unavailable, UnsupportedMedia
from service.gateway import uploads
from service.gateway.uploads import FITS, GROUNDS, REPLY, REQUEST, Fit, Ground, Kind

Pixels = NDArray[np.uint8]

_ERRORS: dict[int, type[ServiceError]] = {
    Kind.INVALID: InvalidRequest,
    Kind.UNSUPPORTED: UnsupportedMedia,
    Kind.TOO_LARGE: PayloadTooLarge,
}
_START_TIMEOUT_S = 30.0
_MESSAGE_BYTES = 1000
# No keys, no Redis address: what a hostile picture may take over knows only where Python is.
_PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")


class _ChildError(Exception):
    """The child ended, or answered what no honest child answers."""


class _Child:
    """One decoder process, used by one task at a time; started when it is needed."""

    def __init__(self, memory_bytes: int, timeout_s: float) -> None:
        # The parent's clock ends a slow picture; the CPU limit is for a child whose parent is gone.
        limits = (str(memory_bytes), str(2 * timeout_s))
        self._command = (sys.executable, "-P", str(Path(uploads.__file__)), *limits)
        self._timeout_s = timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._greeted = False

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Starts the process without waiting for its imports. Raises OSError when there can be none."""
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        # One thread: each of OpenBLAS's takes address space from the memory limit.
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        # A session of its own, so that Ctrl-C in the terminal leaves the end to the gateway.
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, env=environment, start_new_session=True
        )
        self._greeted = False

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def stop(self) -> None:
        """Ends the process and waits until nothing of it is left."""
        self.kill()
        if self._process is not None:
            await self._process.communicate()
            self._process = None

    async def decode(self, request: bytes, data: bytes, shape: tuple[int, int, int]) -> Pixels | ServiceError:
        """Raises _ChildError, TimeoutError, or another OSError when no process can be had."""
        if self.pid is None:
            await self.stop()
            await self.start()
        assert self._process is not None
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        await self._greet(stdout)
        try:
            async with asyncio.timeout(self._timeout_s):
                stdin.write(request)
                stdin.write(data)
                await stdin.drain()
                kind, length = REPLY.unpack(await stdout.readexactly(REPLY.size))
                if length > (math.prod(shape) if kind == Kind.PIXELS else _MESSAGE_BYTES):
                    raise _ChildError
                answer = await stdout.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise _ChildError from error
        if kind in _ERRORS:
            return _ERRORS[kind](answer.decode(errors="replace"))
        if length != math.prod(shape):
            raise _ChildError
        return np.frombuffer(answer, np.uint8).reshape(shape)

    async def _greet(self, stdout: asyncio.StreamReader) -> None:
        if self._greeted:
            return
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await stdout.readexactly(REPLY.size)
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError) as error:
            raise ChildProcessError("the decoder process does not start") from error
        self._greeted = True


class DecoderPool:
    """Decodes uploads in child processes; calls beyond the children wait, at most `max_waiting` of them.

    `timeout_s`: wall time of one picture. `memory_bytes`: address space of a child; Python takes about 110 MB
    of it, a 40-megapixel picture up to 650 MB more. `max_pixels`: width times height, by the header.
    """

    def __init__(
        self,
        workers: int = 1,
        *,
        timeout_s: float = 10.0,
        memory_bytes: int = 1 << 30,
        max_pixels: int = 40_000_000,
        max_waiting: int = 16,
    ) -> None:
        self._timeout_s, self._max_pixels, self._max_waiting = timeout_s, max_pixels, max_waiting
        self._children = [_Child(memory_bytes, timeout_s) for _ in range(workers)]
        self._idle: asyncio.Queue[_Child] = asyncio.Queue()
        self._running: set[asyncio.Task[Pixels | ServiceError]] = set()
        self._waiting = 0
        self._mean_s = 0.1
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that are alive."""
        return [child.pid for child in self._children if child.pid is not None]

    async def start(self) -> None:
        """Starts all children side by side; returns before they have finished their imports."""
        await asyncio.gather(*(child.start() for child in self._children))
        for child in self._children:
            self._idle.put_nowait(child)

    async def close(self) -> None:
        """Kills the children; calls that run or wait raise Unavailable."""
        self._closed = True
        for child in self._children:
            child.kill()
        await asyncio.gather(*self._running)
        await asyncio.gather(*(child.stop() for child in self._children))

    async def decode(
        self, data: bytes, *, size: int, fit: Fit, max_pixels: int | None = None, ground: Ground = "white"
    ) -> Pixels:
        """The first frame of a picture, upright, in sRGB, on `ground`: u8[size, size, 3], read-only.

        `max_pixels` can lower the pool's limit. Raises InvalidRequest (empty, damaged, absurd aspect ratio,
        too slow), UnsupportedMedia, PayloadTooLarge (pixels or memory), Unavailable (too many wait, closing,
        no process to be had).
        """
        limit = self._max_pixels if max_pixels is None else min(max_pixels, self._max_pixels)
        request = REQUEST.pack(len(data), size, FITS.index(fit), GROUNDS.index(ground), limit)
        child = await self._take()
        # A task that the caller's own end does not touch: the child finishes its picture and stays in step.
        task = asyncio.create_task(self._run(child, request, data, (size, size, 3)))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        answer = await asyncio.shield(task)
        if isinstance(answer, ServiceError):
            raise answer
        return answer

    async def _take(self) -> _Child:
        if self._idle.empty() and self._waiting >= self._max_waiting:
            retry_after_s = max(1.0, math.ceil(self._mean_s * (1 + self._waiting / len(self._children))))
            raise Unavailable(
                f"{self._waiting} pictures wait to be decoded, no more are allowed; try again later",
                retry_after_s=retry_after_s,
            )
        self._waiting += 1
        try:
            child = await self._idle.get()
        finally:
            self._waiting -= 1
        if self._closed:
            self._idle.put_nowait(child)
            raise _closing()
        return child

    async def _run(
        self, child: _Child, request: bytes, data: bytes, shape: tuple[int, int, int]
    ) -> Pixels | ServiceError:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            answer = await self._attempt(child, request, data, shape)
            self._mean_s += 0.1 * (clock() - began - self._mean_s)
            return answer
        except BaseException:
            child.kill()  # it may be out of step, and its next answer would reach another caller
            raise
        finally:
            if not self._closed and child.pid is None:
                # Now rather than with the next picture, which tries again should this fail.
                with suppress(OSError):
                    await child.start()
            self._idle.put_nowait(child)

    async def _attempt(
        self, child: _Child, request: bytes, data: bytes, shape: tuple[int, int, int]
    ) -> Pixels | ServiceError:
        failure: ServiceError = _closing()
        # Twice, since a child may be ended from outside (the kernel, an operator) by no fault of the picture.
        for _ in range(2):
            if self._closed:
                break
            try:
                return await child.decode(request, data, shape)
            except TimeoutError:
                await child.stop()
                allowed = f"the {self._timeout_s:g} s allowed"
                return InvalidRequest(f"the picture takes longer to decode than {allowed}")
            except _ChildError:
                failure = InvalidRequest("the picture ended the process that decoded it: damaged or hostile")
            except OSError as error:
                failure = Unavailable(f"no process to decode the picture: {error}", retry_after_s=1.0)
            await child.stop()
        return _closing() if self._closed else failure


def _closing() -> Unavailable:
    return Unavailable("the service is shutting down", retry_after_s=1.0)
