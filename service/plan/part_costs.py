"""What a request, a worker and a gateway cost Redis and the gateway: a file of `maskbit bench parts`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from models.errors import ConfigError, InputError
from models.validation import from_mapping

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class PartCosts:
    """Seconds are those of one processor core; Redis runs commands in one thread, a gateway on one core.

    Of a request: with a result of a few bytes, and for each byte of its result more.
    """

    hardware: str
    source: str
    request_commands: float
    """Commands that clients send, and with `inside` what the scripts carry out."""
    request_inside: float
    request_redis_s: float
    byte_redis_s: float
    request_gateway_s: float
    byte_gateway_s: float
    request_bytes: float
    """On the network of Redis, in both directions together."""
    byte_bytes: float
    request_disk_bytes: float
    """Written to the append-only file of Redis."""
    waiting_bytes: float
    """Memory of Redis for a generate job that waits."""
    worker_commands: float
    """Commands a second of an idle worker; `worker_redis_s` is what they take of each second."""
    worker_redis_s: float
    gateway_commands: float
    gateway_redis_s: float
    reader_redis_s: float
    """At each arrival, for each worker that waits for one."""
    announce_redis_s: float
    """For one announcement of a worker, and for each other worker that is alive."""
    announce_each_redis_s: float
    look_gateway_s: float
    """Each second in a gateway, for each worker that is alive; `look_redis_s` is what that takes of Redis."""
    look_redis_s: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not 0 <= value < math.inf:
                raise ConfigError(f"{name} is {value}; it must be at least 0")

    def save(self, path: Path) -> None:
        """Write the file that `load` reads."""
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> PartCosts:
    """A file of `maskbit bench parts`. Raises InputError, in one line that names it, for anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ConfigError(f"its format is not {FORMAT}")
        costs = from_mapping(PartCosts, values)
    except OSError as exc:
        raise InputError(f"the costs of the parts {path} cannot be read: {exc.strerror}") from exc
    except (ValueError, ConfigError) as exc:
        raise InputError(f"{path} is no file of maskbit bench parts: {exc}") from exc
    return replace(costs, source=str(path))
