"""Looks for a new revision where the bundle of a worker was found."""

from __future__ import annotations

import logging
import time

from models.bundle import HUB_PREFIX, MANIFEST, Bundle, open_bundle, revision_of
from models.errors import BundleError

log = logging.getLogger(__name__)

_RETRY_FLOOR_S, _RETRY_CEILING_S = 2.0, 60.0


class BundleWatch:
    """`current` is the bundle in use. What cannot be used is said once, and tried again ever more rarely.

    A folder is looked at each time. The Hub is asked only when somebody says so: each look is a request.
    """

    def __init__(self, ref: str, current: Bundle) -> None:
        self._ref = ref
        self.current = current
        self._refused: tuple[str, str] | None = None
        self._delay_s = _RETRY_FLOOR_S
        self._again_s = 0.0

    @property
    def refusal(self) -> str:
        """The other revision that lies there and cannot be served, and why; nothing if there is none."""
        if self._refused is None or self._refused[0] == self.current.revision:
            return ""
        return "revision {} cannot be served: {}".format(*self._refused)

    def look(self, *, asked: bool = False) -> Bundle | None:
        """A bundle of another revision; None when there is none, or none to try just now."""
        found = self._on_disk()
        if found == self.current.revision:
            self._refused = None
        if not asked and (found == self.current.revision or self._is_to_wait(found)):
            return None
        try:
            bundle = open_bundle(self._ref)
        except BundleError as exc:
            self.refuse(found or "?", str(exc))
            return None
        if bundle.revision == self.current.revision:
            return None
        name, wanted = bundle.manifest.name, self.current.manifest.name
        if name != wanted:
            self.refuse(bundle.revision, f"it is called {name!r}, and this worker serves {wanted!r}")
            return None
        return bundle

    def refuse(self, revision: str, reason: str) -> None:
        """The revision cannot be served: try it again later, unless another one has come by then."""
        again = self._refused is not None and self._refused[0] == revision
        self._delay_s = min(2 * self._delay_s, _RETRY_CEILING_S) if again else _RETRY_FLOOR_S
        self._again_s = time.monotonic() + self._delay_s
        if self._refused != (revision, reason):
            log.warning("revision %s cannot be served, %s goes on: %s", revision, self.current.ref, reason)
        self._refused = revision, reason

    def _on_disk(self) -> str | None:
        """The revision in the folder; None while it is being replaced, and for the Hub."""
        if self._ref.startswith(HUB_PREFIX):
            return None
        try:
            return revision_of((self.current.path / MANIFEST).read_bytes().decode())
        except (OSError, ValueError):
            return None

    def _is_to_wait(self, found: str | None) -> bool:
        if found is None:
            return True
        return self._refused is not None and self._refused[0] == found and time.monotonic() < self._again_s
