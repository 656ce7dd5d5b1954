"""A connection to Triton Inference Server over gRPC or HTTP, and its troubles as one kind of error."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from models.errors import RuntimeUnavailable
from models.runtime.graph_runtime import Array
from models.runtime.triton_memory import PREFIX, Region, is_orphan, remove_orphans
from models.runtime.triton_models import Config, dims_of, triton_type
from models.signature import GraphSpec

PORTS = {"grpc": 8001, "http": 8000}
# What says nothing about the request: the server is away, starting, stopping, or too slow.
_PASSING = {f"StatusCode.{name}" for name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")}
_PASSING |= {"502", "503", "504"}
_MISSING = ("StatusCode.NOT_FOUND", "404")


class TritonTrouble(Exception):
    """A call failed. `stated`: a server that works says so of this call; `missing`: of a thing it lacks."""

    def __init__(self, message: str, status: str | None = None) -> None:
        super().__init__(message)
        self.stated = status is not None and status not in _PASSING
        self.missing = status in _MISSING


@dataclass(frozen=True)
class Address:
    """Where a server listens: `scheme` is grpc or http."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> Address:
        """The address in `url`; RuntimeUnavailable unless it is like grpc://host:8001 or http://host:8000."""
        try:
            parts = urlsplit(url)
            address = cls(parts.scheme, parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0))
        except ValueError:
            address = cls("", "", 0)
        if address.scheme not in PORTS or not address.host:
            raise RuntimeUnavailable(
                f"the address of Triton is {url!r}; allowed are grpc://host:8001 and http://host:8000"
            )
        return address

    @property
    def place(self) -> str:
        """`host:port`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}"


class Link:
    """A connection, for the thread that opens it.

    Every call raises TritonTrouble after `timeout_s`, and from `until` on, a time of the monotonic clock;
    what has begun over HTTP then goes on for its `timeout_s`.

    `region`, once `share` has succeeded, is memory through which arrays go instead of the connection.
    """

    def __init__(self, address: Address, timeout_s: float, until: float = math.inf) -> None:
        try:
            self._library = import_module(f"tritonclient.{address.scheme}")
            self._errors = (import_module("tritonclient.utils").InferenceServerException, *_foreign(address))
        except ImportError as exc:
            raise RuntimeUnavailable(
                f"the package tritonclient[{address.scheme}] is missing: pip install 'maskbit-serve[triton]'"
            ) from exc
        self.region: Region | None = None
        # gRPC takes the time limit with every call, the HTTP client at its beginning.
        self._timeout_s, self.until = timeout_s, until
        self._each_call = address.scheme == "grpc"
        self._as_json: dict[str, bool] = {}
        options: dict[str, Any] = {"connection_timeout": timeout_s, "network_timeout": timeout_s}
        if address.scheme == "grpc":
            self._as_json = {"as_json": True}
            # Of its own, so that no earlier connection's waiting time after a failure holds for this one.
            own = ("grpc.use_local_subchannel_pool", 1)
            unbounded = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
            options = {"channel_args": [own, *unbounded]}
        with self._translated():
            self._client = self._library.InferenceServerClient(address.place, **options)

    def check_live(self) -> None:
        """Raise TritonTrouble unless the server is there."""
        try:
            with self._translated():
                live = self._client.is_server_live(**self._limit())
        except TritonTrouble as exc:
            raise TritonTrouble(
                f"it cannot be reached ({exc}); is it running, is the address right?"
            ) from exc
        if not live:
            raise TritonTrouble("it is not live")

    def is_ready(self, model: str, version: int) -> bool:
        """Whether a version of a model can be run."""
        with self._translated():
            return bool(self._client.is_model_ready(model, str(version), **self._limit()))

    def config(self, model: str) -> Config | None:
        """The configuration of a model, as JSON, None where there is no such model."""
        try:
            with self._translated():
                reply = self._client.get_model_config(model, **self._as_json, **self._limit())
        except TritonTrouble as exc:
            if exc.missing:
                return None
            raise
        config: Config = reply.get("config", reply)
        return config

    def share(self, size: int) -> None:
        """Agree with the server on a `region` of `size` bytes. Raises TritonTrouble, OSError: it cannot be.

        That the server finds the region by its name proves that it runs on this machine.
        """
        remove_orphans()
        region = Region(size)
        try:
            with self._translated():
                self._client.register_system_shared_memory(region.name, region.key, size, **self._limit())
            self._forget_orphans()
        except TritonTrouble:
            region.close()
            raise
        self.region = region

    def _forget_orphans(self) -> None:
        """Let the server unmap the regions of clients that have ended or given them up."""
        with self._translated():
            known = self._client.get_system_shared_memory_status(**self._as_json, **self._limit())
        regions = known.get("regions", {}).values() if self._as_json else known
        for region in regions:
            if region["name"].startswith(PREFIX) and is_orphan(region["key"]):
                # One that a request still writes to is refused, and left to the next client.
                with suppress(TritonTrouble), self._translated():
                    self._client.unregister_system_shared_memory(region["name"], **self._limit())

    def infer(
        self, model: str, version: int, spec: GraphSpec, inputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The outputs of `model`, which computes `spec`, by name."""
        rows = len(next(iter(inputs.values())))
        tensor, wanted = self._library.InferInput, self._library.InferRequestedOutput
        sent = [tensor(one.name, [rows, *dims_of(one)], triton_type(one)) for one in spec.inputs]
        asked = [wanted(one.name) for one in spec.outputs]
        arrays = [inputs[one.name].reshape(rows, *dims_of(one)) for one in spec.inputs]
        views: list[Array] | None = None
        if self.region is None:
            for place, array in zip(sent, arrays, strict=True):
                place.set_data_from_numpy(array)
        else:
            shapes = [((rows, *one.shape), np.dtype(one.dtype)) for one in spec.outputs]
            views = self.region.lay_out(sent, arrays, asked, shapes)
        with self._translated():
            reply = self._client.infer(
                model, sent, model_version=str(version), outputs=asked, **self._limit()
            )
        if views is None:
            views = [reply.as_numpy(one.name) for one in spec.outputs]
        # Copies, since the next call writes over the region, and those of gRPC are read-only.
        return {one.name: np.array(view) for one, view in zip(spec.outputs, views, strict=True)}

    def _limit(self) -> dict[str, float]:
        """What a call is to be told of its time. Raises TritonTrouble if there is none left."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise TritonTrouble("no time is left")
        return {"client_timeout": min(self._timeout_s, left)} if self._each_call else {}

    def close(self) -> None:
        """Give up the region, of which the next client tells the server."""
        if self.region is not None:
            self.region.close()
            self.region = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._errors as exc:
            status = exc.status() if hasattr(exc, "status") else None
            text = exc.message() if hasattr(exc, "message") else str(exc)
            reason = (text or type(exc).__name__).strip().partition("\n")[0]
            raise TritonTrouble(reason, status) from exc


def _foreign(address: Address) -> tuple[type[Exception], ...]:
    """What the client lets through as the libraries below it raise it."""
    if address.scheme == "grpc":
        return ()
    return (OSError, import_module("geventhttpclient.response").HTTPParseError)
