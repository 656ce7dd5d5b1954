"""How long the calls of one worker take on one machine: a file of `maskbit bench steps`, or numbers given."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from models.errors import ConfigError, InputError
from models.runtime.base import CUDA_BUCKETS, bucket_for
from models.sampling_config import SamplingConfig
from models.validation import from_mapping

FORMAT = 1
Times = Mapping[int, float]
_BY_SIZE = ("step_s", "decode_s", "encode_s")


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Seconds by size. What was not measured at a size is taken between its neighbours.

    step_s     by network rows of a sampling step, noise and book-keeping of the engine included
    decode_s   by pictures that are decoded together
    encode_s   by pictures that are tokenized together; empty where that was not measured
    file_s     to make the file of one picture, which has `file_bytes`
    service_s  HTTP, queue and result of a picture that takes no time to draw

    A picture to tokenize has `pixels_bytes` in the queue, and its result `tokens_bytes`.
    """

    hardware: str
    model: str
    runtime: str
    sampling: SamplingConfig
    slots: int
    buckets: tuple[int, ...]
    step_s: Times
    decode_s: Times
    encode_s: Times
    file_s: float
    file_bytes: int
    pixels_bytes: int
    tokens_bytes: int
    service_s: float
    source: str

    def __post_init__(self) -> None:
        for name in ("step_s", "decode_s"):
            if not getattr(self, name):
                raise ConfigError(f"{name} of the step times is empty")
        numbers = [second for name in _BY_SIZE for second in getattr(self, name).values()]
        if not all(0 < second < math.inf for second in numbers):
            raise ConfigError("step times must be above 0")
        sizes = (self.file_bytes, self.pixels_bytes, self.tokens_bytes)
        if self.slots < 1 or self.file_s < 0 or self.service_s < 0 or min(sizes) < 0:
            raise ConfigError("slots must be at least 1, and no time or size of the step times below 0")
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)) or self.buckets[0] < 1:
            raise ConfigError(f"buckets are {list(self.buckets)}; they must ascend from at least 1")

    @property
    def most_rows(self) -> int:
        """Rows of the largest step that is known."""
        return max(self.step_s)

    def step(self, rows: int) -> float:
        """Seconds of a sampling step of so many network rows."""
        return _of_calls(self.step_s, rows, self.buckets)

    def decode(self, pictures: int) -> float:
        """Seconds until so many pictures are decoded."""
        return _of_calls(self.decode_s, pictures, self.buckets)

    def encode(self, pictures: int) -> float:
        """Seconds until so many pictures are tokenized. Raises InputError where that was not measured."""
        if not self.encode_s:
            raise InputError(f"the step times ({self.source}) have no times of tokenizing")
        return _of_calls(self.encode_s, pictures, self.buckets)

    @classmethod
    def assumed(cls, step_s: Times, decode_s: Times, sampling: SamplingConfig, slots: int) -> Self:
        """Of numbers that nobody measured, with the row counts that a GPU is given."""
        return cls(
            hardware="",
            model="",
            runtime="",
            sampling=sampling,
            slots=slots,
            buckets=CUDA_BUCKETS,
            step_s=step_s,
            decode_s=decode_s,
            encode_s={},
            file_s=0.0,
            file_bytes=0,
            pixels_bytes=0,
            tokens_bytes=0,
            service_s=0.0,
            source="assumed, by --step-times and --decode-times",
        )

    def save(self, path: Path) -> None:
        """Write the file that `load` reads."""
        values = {"format": FORMAT, **asdict(self)}
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> StepTimes:
    """A file of `maskbit bench steps`. Raises InputError, in one line that names it, for anything else."""
    try:
        times = from_values(json.loads(path.read_text(encoding="utf-8")))
    except OSError as exc:
        raise InputError(f"the step times {path} cannot be read: {exc.strerror}") from exc
    except (TypeError, AttributeError) as exc:
        raise InputError(
            f"{path} is no file of maskbit bench steps: a part of it is of the wrong kind"
        ) from exc
    except (ValueError, ConfigError) as exc:
        raise InputError(f"{path} is no file of maskbit bench steps: {exc}") from exc
    return replace(times, source=str(path))


def from_values(values: dict[str, Any]) -> StepTimes:
    """From what `save` writes. Raises ConfigError, ValueError, TypeError, AttributeError."""
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ConfigError(f"its format is not {FORMAT}")
    values = {name: value for name, value in values.items() if name != "format"}
    for name in _BY_SIZE:
        values[name] = {int(size): float(second) for size, second in values.get(name, {}).items()}
    values["sampling"] = from_mapping(SamplingConfig, values.get("sampling", {}))
    values["buckets"] = tuple(values.get("buckets", ()))
    return from_mapping(StepTimes, values)


def _of_calls(known: Times, size: int, buckets: tuple[int, ...]) -> float:
    """Seconds of all calls that `size` rows take: as many full ones as there are, and the rest padded."""
    full, rest = divmod(size, buckets[-1])
    whole = full * _at(known, buckets[-1]) if full else 0.0
    return whole + (_at(known, bucket_for(rest, buckets)) if rest else 0.0)


def _at(known: Times, size: int) -> float:
    """Between two known sizes in a straight line; below the smallest as long as that one."""
    sizes = sorted(known)
    place = bisect_left(sizes, size)
    if place == 0:
        return known[sizes[0]]
    if place == len(sizes):
        # Beyond what is known every row costs what it does on average.
        return known[sizes[-1]] * size / sizes[-1]
    low, high = sizes[place - 1], sizes[place]
    share = (size - low) / (high - low)
    return known[low] + share * (known[high] - known[low])
