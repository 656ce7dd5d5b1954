"""How full each part of a cluster is: Redis' thread, network, disk; the gateways' cores; and what helps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from service.jobs.job import QueueLimits
from service.plan.load import Load
from service.plan.part_costs import PartCosts

FULL = 0.7
"""Share of a limit up to which a part is planned: beyond it waiting grows quickly."""
# A gateway forgets results that were fetched, and trims its inbox, at least so often.
_RESULT_LIFE_S = 1.0
_BITS = 8
_MB = 1e6


@dataclass(frozen=True)
class Part:
    """One limit: `used` of `limit` in `unit`, in one shard; its work split up, and the knob for it."""

    name: str
    used: float
    limit: float
    unit: str
    knob: str
    of: tuple[tuple[str, float], ...] = ()

    @property
    def share(self) -> float:
        """Of the limit."""
        return self.used / self.limit


def parts_of(load: Load, costs: PartCosts) -> list[Part]:
    """Every part with a limit, the fullest first."""
    parts = [_redis_thread(load, costs), _gateways(load, costs), _network(load, costs), _disk(load, costs)]
    if load.kept:
        parts.append(_results(load))
    return sorted(parts, key=lambda part: part.share, reverse=True)


def _redis_thread(load: Load, costs: PartCosts) -> Part:
    rate, workers = load.rate / load.shards, load.workers / load.shards
    beats = workers / (load.lease_s / 4)
    of = (
        (
            "requests",
            rate * costs.request_redis_s + load.passing_bytes_s / load.shards * costs.byte_redis_s,
        ),
        ("workers that wait for an arrival", rate * workers * costs.reader_redis_s),
        ("announcements", beats * (costs.announce_redis_s + costs.announce_each_redis_s * workers)),
        ("idle workers", workers * costs.worker_redis_s),
        ("looks at the workers", load.gateways / load.shards * workers * costs.look_redis_s),
        ("idle gateways", load.gateways / load.shards * costs.gateway_redis_s),
    )
    knob = "shards: more cells, each with a Redis of its own (--shards); fewer workers with more slots"
    return Part("Redis, one thread", sum(used for _, used in of), 1.0, "core", knob, of)


def _gateways(load: Load, costs: PartCosts) -> Part:
    of = (
        ("requests", _gateway_work_s(load, costs) / load.gateways),
        ("looks at the workers", load.workers / load.shards * costs.look_gateway_s),
    )
    return Part("each gateway", sum(used for _, used in of), 1.0, "core", "gateways (--gateways)", of)


def _gateway_work_s(load: Load, costs: PartCosts) -> float:
    """Processor seconds that the requests of a second take of all gateways."""
    return load.rate * costs.request_gateway_s + load.passing_bytes_s * costs.byte_gateway_s


def _network(load: Load, costs: PartCosts) -> Part:
    sent = load.rate * costs.request_bytes + load.passing_bytes_s * costs.byte_bytes
    bits = _BITS * sent / load.shards
    # A full-duplex network carries each direction by itself; payloads and results are nearly all of both.
    knob = "shards; smaller files (webp, jpeg)"
    return Part("network of Redis", bits / 2 / 1e9, load.network_bits_s / 1e9, "Gbit/s", knob)


def _disk(load: Load, costs: PartCosts) -> Part:
    written = (load.rate * costs.request_disk_bytes + load.written_bytes_s) / load.shards
    knob = "a faster disk (--disk); shards; smaller files (webp, jpeg)"
    return Part("disk of Redis", written / _MB, load.disk_bytes_s / _MB, "MB/s", knob)


def _results(load: Load) -> Part:
    used = (load.kept_results + load.open_jobs) / load.shards
    knob = "a shorter MASKBIT_RESULT_TTL_S (--result-ttl); shards"
    return Part("kept results", used, QueueLimits.results, "jobs", knob)


def gateways_needed(load: Load, costs: PartCosts) -> int:
    """Gateways whose cores are at most FULL, as many in each shard."""
    looks = load.workers / load.shards * costs.look_gateway_s
    work = _gateway_work_s(load, costs) / load.shards
    return load.shards * max(1, math.ceil(work / max(FULL - looks, FULL / 2)))


def commands(load: Load, costs: PartCosts) -> tuple[float, float]:
    """Commands a second that are sent to all shards, and those that scripts carry out inside."""
    idle = load.workers * costs.worker_commands + load.gateways * costs.gateway_commands
    return load.rate * costs.request_commands + idle, load.rate * costs.request_inside


def memory_bytes(load: Load, costs: PartCosts) -> tuple[float, float]:
    """Memory of all shards: for jobs that wait, payloads and results on their way, and for kept results."""
    flows = load.flows
    payloads = sum(flow.open_jobs * flow.payload_bytes for flow in flows)
    results = _RESULT_LIFE_S * sum(flow.rate * flow.result_copies * flow.result_bytes for flow in flows)
    # The hash of a job that has ended is about as large as that of one that waits, but for its result.
    ended = sum(flow.rate * (costs.waiting_bytes + flow.result_bytes) for flow in flows)
    return load.waiting * costs.waiting_bytes + payloads + results, load.kept * load.result_ttl_s * ended


def lines_of(parts: list[Part]) -> Iterator[str]:
    """One line for each part, the pieces of its work below."""
    for part in parts:
        limit = f"{part.limit:,g} {part.unit}"
        state = "FULL" if part.share > FULL else "ok"
        yield f"{part.name:20}{part.share:8.1%} of {limit:13}{state:6}{part.knob}"
        for name, used in part.of:
            if used / part.limit >= 0.001:
                yield f"  {name:34}{used / part.limit:8.1%}"
