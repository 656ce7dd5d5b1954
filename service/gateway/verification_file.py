"""The report of `maskbit export verify` in a gateway's bundle folder, read again when it changes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from models.errors import BundleError
from models.exported import FOLDER, RECORD
from models.verification import VERIFICATION, Verification, read_verification

log = logging.getLogger(__name__)

_State = tuple[tuple[int, int, int] | None, ...]


class VerificationFile:
    """Of the bundle in `folder`, which may be replaced by another revision at any time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state: _State = ()
        self._report: Verification | None = None

    def of(self, ref: str) -> Verification | None:
        """The report on the revision `ref`; None where the folder has none on it, or a broken one."""
        # An export that is made anew outdates a report that stays as it was.
        state = tuple(_state(self._folder / name) for name in (VERIFICATION, f"{FOLDER}/{RECORD}"))
        if state != self._state:
            self._state, self._report = state, self._read()
        return self._report if self._report is not None and self._report.bundle == ref else None

    def _read(self) -> Verification | None:
        try:
            return read_verification(self._folder)
        except BundleError as exc:
            log.warning("/v1/models tells nothing about runtimes: %s", exc)
            return None


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file's content."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
