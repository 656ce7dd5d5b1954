"""The exported graphs in a Triton Inference Server; needs neither torch nor weights."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from models.bundle import Bundle
from models.errors import RuntimeLost, RuntimeUnavailable
from models.runtime.base import STRICT_BUCKET
from models.runtime.graph_runtime import Array, GraphRuntime
from models.runtime.triton_link import Address, Link, TritonTrouble
from models.runtime.triton_memory import region_size
from models.runtime.triton_models import DEADLINE_S, TIMEOUT_S, Served, find_models, model_name

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0


@dataclass(frozen=True)
class Session:
    """A connection over which the bundle was found, and the thread that it belongs to."""

    link: Link
    served: Served
    thread: int


class TritonRuntime(GraphRuntime):
    """Runtime of a bundle whose models, from `maskbit export triton`, a Triton at `url` serves.

    A call that fails because the server is away or slow is repeated for `deadline_s`; one try takes
    `timeout_s` at most, and no longer than is left, but that what has begun over HTTP may be late by
    `timeout_s`. Every call names the version that computes this very bundle, so that a server that goes over
    to another revision gives no wrong answer. Arrays go through shared memory where the server finds it. With
    `strict` the models must be of one batch size, the same for all.

    Raises RuntimeUnavailable when the server cannot be reached, serves something else or refuses a call;
    RuntimeLost when it was there and stays away.
    """

    name = "triton"

    def __init__(
        self,
        bundle: Bundle,
        url: str,
        *,
        precision: str = "auto",
        strict: bool = False,
        share_memory: bool = True,
        timeout_s: float = TIMEOUT_S,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._bundle, self._address = bundle, Address.parse(url)
        self._share_memory, self._timeout_s, self._deadline_s = share_memory, timeout_s, deadline_s
        self._session: Session | None = None
        self.device_name, self.precision = self._address.host, precision
        super().__init__(bundle.manifest, ())
        try:
            served = self._connected().served
        except (TritonTrouble, RuntimeUnavailable) as exc:
            raise RuntimeUnavailable(f"Triton at {self._address}: {exc}") from exc
        # A server that comes back must serve the same.
        self.precision, self.buckets = served.precision, max(served.rows.values())
        self.sizes = dict(served.rows)
        if strict and set(served.rows.values()) != {(STRICT_BUCKET,)}:
            raise RuntimeUnavailable(
                f"Triton at {self._address} batches rows of all clients, so tokens are not bit-equal; "
                "make its repository with: maskbit export triton --strict"
            )

    def warm_up(self) -> None:
        """Run every graph once; the server warms all sizes itself when it starts."""
        for graph, sizes in self.sizes.items():
            self._warm(graph, sizes[:1])

    def close(self) -> None:
        """Let go of the connection and of shared memory."""
        if self._session is not None:
            self._session.link.close()
            self._session = None

    def _run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of one call, repeated as long as the server may come back."""
        give_up = time.monotonic() + self._deadline_s
        pause, refusals = FIRST_PAUSE_S, 0
        while True:
            try:
                return self._try(graph, inputs, give_up)
            except (TritonTrouble, RuntimeUnavailable) as exc:
                self.close()
                # What a server refuses is tried once more: one that was restarted knows no shared memory.
                refusals += isinstance(exc, TritonTrouble) and exc.stated
                if refusals == 2:
                    raise RuntimeUnavailable(f"Triton at {self._address} cannot run {graph}: {exc}") from exc
                if time.monotonic() + pause >= give_up:
                    raise RuntimeLost(
                        f"Triton at {self._address} has been away for {self._deadline_s:g} s: {exc}"
                    ) from exc
                log.warning("Triton at %s: a call of %s is repeated: %s", self._address, graph, exc)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _try(self, graph: str, inputs: Mapping[str, Array], give_up: float) -> dict[str, Array]:
        session = self._connected(give_up)
        session.link.until = give_up
        model = model_name(self._bundle.manifest.name, graph)
        return session.link.infer(model, session.served.number, self.specs[graph], inputs)

    def _connected(self, until: float = math.inf) -> Session:
        """A session of this thread: the HTTP client's connections are of use to the one that opened them."""
        if self._session is None or self._session.thread != threading.get_ident():
            self.close()
            self._session = self._connect(until)
        return self._session

    def _connect(self, until: float) -> Session:
        link = Link(self._address, self._timeout_s, until)
        link.check_live()
        served = find_models(link, self._bundle, self.precision)
        way = self._share(link, served) if self._share_memory else "over the connection"
        log.info("Triton at %s: version %d of %s, %s", self._address, served.number, self._bundle.ref, way)
        return Session(link, served, threading.get_ident())

    def _share(self, link: Link, served: Served) -> str:
        """Try to share memory with the server; how arrays go."""
        try:
            link.share(max(region_size(spec, served.rows[graph][-1]) for graph, spec in self.specs.items()))
        except (TritonTrouble, OSError) as exc:
            return f"over the connection, since it shares no memory with this process ({exc})"
        return "through shared memory"
