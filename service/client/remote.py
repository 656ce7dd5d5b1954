"""A running service as a program sees it: requests that are repeated until they are answered or refused."""

from __future__ import annotations

import math
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakSet

import httpx

from models.errors import InputError
from service.errors import Unavailable

_ANSWER_TIMEOUT_S = 3700.0  # longer than any job may take
_CONNECT_TIMEOUT_S = 10.0
_LONGEST_PAUSE_S = 30.0
_TOLD_PAUSE_S = 2.0  # nobody needs to hear of shorter ones
_BUSY = frozenset({429, 502, 503, 504})
_CONNECTED = ("connection.connect_tcp.complete", "connection.start_tls.complete")

T = TypeVar("T")


class Remote:
    """The service at `url`; safe for several threads. Close it after use.

    A service that is busy, restarting or out of reach is asked again for `patience_s` seconds from its first
    failure on: then Unavailable. What it refuses is raised as InputError with its own sentence.
    `on_wait` gets a sentence when a longer pause begins, once until an answer comes.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        patience_s: float = 600.0,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise InputError("the API key has characters that no key has, such as a line end")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        timeout = httpx.Timeout(_ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
        self.url = url.rstrip("/")
        self._patience_s = patience_s
        self._on_wait = on_wait
        self._waiting = False
        self._waiting_lock = threading.Lock()
        self._leaving = threading.Event()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._sockets_lock = threading.Lock()
        hooks: dict[str, list[Callable[..., Any]]] = {"request": [self._watch]}
        try:
            self._http = httpx.Client(
                base_url=self.url, headers=headers, limits=limits, timeout=timeout, event_hooks=hooks
            )
        except (httpx.InvalidURL, ValueError) as exc:
            raise InputError(f"--server is {url!r}, which is no address: {exc}") from exc

    def close(self) -> None:
        """Give up what is under way: the service cancels it."""
        with self._sockets_lock:
            self._leaving.set()
            for one in self._sockets:
                _hang_up(one)
        self._http.close()

    def info(self, model: str | None) -> dict[str, Any]:
        """`GET /info`."""
        return self._json(lambda: self._http.get("/info", params=_query(model)))

    def class_names(self, model: str | None) -> list[str]:
        """The class names by id, by `GET /classes`."""
        answer = self._json(lambda: self._http.get("/classes", params=_query(model)))
        return [str(one["name"]) for one in answer["classes"]]

    def slots(self) -> int:
        """Pictures that all living workers draw at a time; 0 when none is ready."""
        answer = self._json(lambda: self._http.get("/readyz"))
        return sum(int(worker.get("slots", 1)) for worker in answer.get("workers", ()))

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        """`POST /generate`."""
        return self._json(lambda: self._http.post("/generate", json=body))

    def _watch(self, request: httpx.Request) -> None:
        request.extensions["trace"] = self._trace

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event in _CONNECTED:
            connected = info["return_value"].get_extra_info("socket")
            with self._sockets_lock:
                self._sockets.add(connected)
                if self._leaving.is_set():
                    _hang_up(connected)

    def _json(self, ask: Callable[[], httpx.Response]) -> dict[str, Any]:
        failures, give_up_s = 0, math.inf
        while True:
            failures += 1
            pause_s = random.uniform(0, min(_LONGEST_PAUSE_S, 0.25 * 2.0 ** min(failures, 10)))
            try:
                reply = ask()
            except (httpx.UnsupportedProtocol, httpx.InvalidURL) as exc:
                raise InputError(f"--server is {self.url!r}: {exc}") from exc
            except httpx.TransportError as exc:
                problem = f"{type(exc).__name__}: {exc}"
            else:
                if reply.is_success:
                    self._waiting = False
                    return self._object(reply)
                problem = _sentence(reply)
                if reply.status_code not in _BUSY:
                    raise InputError(f"{self.url} refused: {problem}")
                pause_s = max(pause_s, min(_LONGEST_PAUSE_S, _retry_after_s(reply)))
            # An answer may be hours away: only what goes wrong tries our patience.
            now_s = time.monotonic()
            give_up_s = min(give_up_s, now_s + self._patience_s)
            if self._leaving.is_set() or now_s + pause_s > give_up_s:
                raise Unavailable(f"{self.url} did not answer for {self._patience_s:.0f} s: {problem}")
            if pause_s > _TOLD_PAUSE_S:
                self._tell_of_wait(problem)
            self._leaving.wait(pause_s)

    def _tell_of_wait(self, problem: str) -> None:
        with self._waiting_lock:
            told, self._waiting = self._waiting, True
        if self._on_wait is not None and not told:
            self._on_wait(
                f"the service is busy or away ({problem}); trying again for up to {self._patience_s:.0f} s"
            )

    def _object(self, reply: httpx.Response) -> dict[str, Any]:
        try:
            answer = reply.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise InputError(f"{self.url} answered with something else than JSON; is it a MaskBit service?")
        return answer


def _hang_up(connected: socket.socket) -> None:
    """End a connection so that a thread that reads from it learns of it; closing alone would not wake it."""
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _query(model: str | None) -> dict[str, str]:
    return {"model": model} if model else {}


def _sentence(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {reply.status_code}"


def _retry_after_s(reply: httpx.Response) -> float:
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0
