"""The API keys in force: those of the environment and of a file, which is read again when it changes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from models.errors import ConfigError
from service.gateway.api_keys import KeySet, read_compact, read_file
from service.gateway.caller import Caller

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_Version = tuple[int, int, int] | None


class KeyRing:
    """Finds who has a key. `text`: keys in compact form. `file`: a TOML file. Without both none is needed.

    Raises ConfigError when the first keys are wrong; a wrong file later changes nothing.
    """

    def __init__(
        self, text: str | None, file: Path | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.required = text is not None or file is not None
        self._fixed = read_compact(text) if text is not None else []
        self._file = file
        self._clock = clock
        self._looked_s = clock()
        self._version = _version(file)
        self._keys = self._read() if self.required else None

    def find(self, presented: str) -> Caller | None:
        """Who has the key `presented`, None for nobody."""
        if self._file is not None and self._clock() - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = self._clock()
            self._refresh()
        return self._keys.find(presented) if self._keys else None

    def _read(self) -> KeySet:
        return KeySet((*self._fixed, *(read_file(self._file) if self._file else ())))

    def _refresh(self) -> None:
        version = _version(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = self._read()
        except ConfigError as exc:
            log.error("the API keys stay as they were: %s", exc)
        else:
            log.info("read %d API keys from %s", len(self._keys.keys), self._file)


def _version(file: Path | None) -> _Version:
    """What changes with the file's content: also behind a link, as Kubernetes mounts its secrets."""
    try:
        found = os.stat(file) if file is not None else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_ino, found.st_size) if found else None
