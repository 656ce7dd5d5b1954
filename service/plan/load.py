"""What a cluster has to do."""

from __future__ import annotations

from dataclasses import dataclass

INLINE_BYTES = 65_536
"""Of a result that is also in the inbox of its gateway, see `service/jobs/lua/terminate.lua`."""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Requests of one kind: `rate` a second, `result_bytes` each.

    `payload_bytes`: what a job brings beyond a few numbers; Redis holds it until the job has ended, so of
    `open_jobs` at most.
    """

    rate: float
    result_bytes: float
    payload_bytes: float = 0.0
    open_jobs: float = 0.0

    @property
    def passing_bytes(self) -> float:
        """Of a request, into Redis and out of it: payloads go to a worker, results to a gateway."""
        return self.payload_bytes + self.result_bytes

    @property
    def result_copies(self) -> int:
        """Of a result that Redis writes: in the hash of its job, and in the inbox unless it is large."""
        return 2 if self.result_bytes <= INLINE_BYTES else 1

    @property
    def written_bytes(self) -> float:
        """Of a request, into the append-only file."""
        return self.payload_bytes + self.result_copies * self.result_bytes


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests of each kind on `shards` Redis servers, and what is around these; `waiting` jobs at most.

    Each shard has its share of requests, workers and gateways, and a disk that writes `disk_bytes_s`. `kept`
    is the share of requests whose results stay for `result_ttl_s`: background jobs and those with an
    idempotency key. `open_jobs`: accepted and not ended, at most.
    """

    flows: tuple[Flow, ...]
    workers: int
    gateways: int
    shards: int
    waiting: float
    open_jobs: float
    lease_s: float
    network_bits_s: float
    disk_bytes_s: float
    kept: float
    result_ttl_s: float

    @property
    def rate(self) -> float:
        """Requests a second of all kinds."""
        return sum(flow.rate for flow in self.flows)

    @property
    def passing_bytes_s(self) -> float:
        """Of payloads and results, into all shards and out of them again."""
        return sum(flow.rate * flow.passing_bytes for flow in self.flows)

    @property
    def written_bytes_s(self) -> float:
        """Of payloads and results, into the append-only files of all shards."""
        return sum(flow.rate * flow.written_bytes for flow in self.flows)

    @property
    def kept_results(self) -> float:
        """Results of all shards that stay until their time is over."""
        return self.kept * self.rate * self.result_ttl_s
