"""Bytes of a file from a path or URL, as a stream that outlives broken connections."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from typing import Any, BinaryIO, TypeVar, cast
from urllib.error import HTTPError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import Request, urlopen

from models.errors import ConfigError

T = TypeVar("T")

TIMEOUT_S = 30.0  # without a byte
ATTEMPTS = 5  # in a row without a byte
PAUSE_S = 0.5  # before the second attempt; doubled before each further one
BUFFER_BYTES = 1 << 20
PASSING = (408, 429)  # HTTP codes below 500 after which another attempt makes sense


def is_url(name: str) -> bool:
    """Whether `name` has a scheme; all else is a local path."""
    return "://" in name


def is_http(name: str) -> bool:
    """Whether `name` is read by HttpStream."""
    return name.lower().startswith(("http://", "https://"))


def path_of(name: str) -> str:
    """`name` without the query of an http URL, for its file suffix."""
    return urlsplit(name).path if is_http(name) else name


def beside(name: str, other: str) -> str:
    """Path or URL of the file `other` in the folder of the file `name`."""
    if not is_http(name):
        folder, slash, _ = name.rpartition("/")
        return f"{folder}{slash}{other}"
    parts = urlsplit(name)
    return urlunsplit(parts._replace(path=f"{parts.path.rpartition('/')[0]}/{other}"))


def open_bytes(name: str) -> BinaryIO:
    """The file `name`: a path, an http(s) URL (a stream without seek), or a URL that fsspec knows.

    ConfigError, naming it, when it is not there.
    """
    try:
        if is_http(name):
            return io.BufferedReader(HttpStream(name), BUFFER_BYTES)
        if is_url(name):
            return _fsspec_file(name)
        return open(name, "rb")
    except OSError as exc:
        raise unreadable(name, exc) from exc


def _fsspec_file(url: str) -> BinaryIO:
    import fsspec

    try:
        return cast(BinaryIO, fsspec.open(url, "rb").open())
    except (ImportError, ValueError) as exc:  # a package for the scheme is missing, or no such scheme
        raise unreadable(url, exc) from exc


def unreadable(name: str, exc: BaseException) -> ConfigError:
    """The error of a file that cannot be read, on one line."""
    reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc) or type(exc).__name__
    return ConfigError(f"{name}: cannot be read ({' '.join(str(reason).split())})")


class HttpStream(io.RawIOBase):
    """The body of an http(s) URL; after a broken connection it goes on where it stopped.

    Connects at once. ConfigError, naming the URL, for an answer such as 404, for a file that changes while it
    is read, and after `attempts` failures in a row, `pause_s` (doubled each time) seconds apart.
    """

    def __init__(
        self, url: str, *, timeout_s: float = TIMEOUT_S, attempts: int = ATTEMPTS, pause_s: float = PAUSE_S
    ) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self.attempts = attempts
        self.pause_s = pause_s
        self._offset = 0
        self._size: int | None = None
        self._failures = 0
        self._response: HTTPResponse | None = None
        self._persist(self._connect)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._persist(lambda: self._receive(buffer))

    def close(self) -> None:
        self._hang_up()
        super().close()

    def _persist(self, action: Callable[[], T]) -> T:
        while True:
            try:
                return action()
            except HTTPError as exc:
                exc.close()
                if exc.code < 500 and exc.code not in PASSING:
                    raise ConfigError(f"{self.url}: cannot be read ({exc.code} {exc.reason})") from exc
                self._pause(exc)
            except (OSError, HTTPException) as exc:
                self._pause(exc)

    def _pause(self, exc: Exception) -> None:
        self._hang_up()
        self._failures += 1
        if self._failures >= self.attempts:
            reason = " ".join(str(exc).split()) or type(exc).__name__
            raise ConfigError(
                f"{self.url}: cannot be read (given up after {self.attempts} attempts: {reason})"
            ) from exc
        time.sleep(self.pause_s * 2 ** (self._failures - 1))

    def _connect(self) -> None:
        headers = {"Range": f"bytes={self._offset}-"} if self._offset else {}
        response = urlopen(Request(self.url, headers=headers), timeout=self.timeout_s)
        self._response = response
        begin = self._offset if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        size = None if length is None else begin + int(length)
        if self._offset and size != self._size:
            raise ConfigError(f"{self.url}: changed while it was read ({self._size} bytes, then {size})")
        self._size = size
        for count in range(self._offset - begin, 0, -BUFFER_BYTES):  # a server without ranges starts anew
            response.read(min(count, BUFFER_BYTES))

    def _receive(self, buffer: Any) -> int:
        if self._response is None:
            self._connect()
        assert self._response is not None
        count = self._response.readinto(buffer)
        if count == 0 and self._size is not None and self._offset < self._size and len(buffer):
            raise ConnectionError(f"connection closed after {self._offset} of {self._size} bytes")
        self._offset += count
        self._failures = 0
        return count

    def _hang_up(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response = None
