"""What a job carries through the queue and what comes back: msgpack maps of small, bounded values.

Both sides are ours, so a malformed payload is a bug or a foreign writer: it raises JobFailed, not a stack
trace. Pictures travel as raw RGB bytes, token grids as little-endian int32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

import msgpack
import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError
from models.sampling_config import SamplingConfig
from models.validation import from_mapping
from service.errors import JobFailed
from service.jobs.job import Kind

PICTURE_FORMATS = ("png", "jpeg", "webp")

T = TypeVar("T", bound="Payload")


@dataclass(frozen=True)
class Payload:
    """Base of everything below: `pack` and `unpack` are each other's inverse."""

    def pack(self) -> bytes:
        """Bytes for the queue."""
        packed: bytes = msgpack.packb(vars(self), default=vars)
        return packed

    @classmethod
    def unpack(cls: type[T], data: bytes) -> T:
        """Parse what `pack` made; JobFailed for anything else."""
        try:
            return cls._from_values(msgpack.unpackb(data))
        except (ValueError, TypeError, KeyError, ConfigError, msgpack.exceptions.UnpackException) as exc:
            raise JobFailed(f"the queue held a malformed {cls.__name__}") from exc

    @classmethod
    def _from_values(cls: type[T], values: dict[str, Any]) -> T:
        return from_mapping(cls, values)


@dataclass(frozen=True)
class GenerateJob(Payload):
    """Pictures to draw, one per entry of `class_ids` and `seeds`; `events` asks for progress messages.

    With a `mask`, packed by `bits.pack_mask`, only the tokens that it marks are drawn; the others are those
    of `tokens`, packed by `bits.pack`, in all pictures. Both are empty for pictures from nothing.
    """

    kind: ClassVar[Kind] = "generate"

    class_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    sampling: SamplingConfig
    format: str
    events: bool = False
    preview_every: int = 0
    tokens: bytes = b""
    mask: bytes = b""

    @property
    def rows(self) -> int:
        """Pictures of the job."""
        return len(self.seeds)

    @property
    def holds_tokens(self) -> bool:
        """Whether it means something only to one tokenizer."""
        return bool(self.mask)

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> GenerateJob:
        values["sampling"] = from_mapping(SamplingConfig, values["sampling"])
        return from_mapping(cls, values)


@dataclass(frozen=True)
class TokenizeJob(Payload):
    """`count` pictures u8 (count, size, size, 3), decoded, checked and fitted by the gateway."""

    kind: ClassVar[Kind] = "tokenize"
    holds_tokens: ClassVar[bool] = False

    count: int
    size: int
    pixels: bytes

    @property
    def rows(self) -> int:
        """Pictures of the job."""
        return self.count

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> TokenizeJob:
        """A job for `images` u8 (count, size, size, 3)."""
        return cls(len(images), images.shape[1], images.tobytes())

    def images(self) -> NDArray[np.uint8]:
        """The pictures as an array u8 (count, size, size, 3)."""
        return np.frombuffer(self.pixels, dtype=np.uint8).reshape(self.count, self.size, self.size, 3)


@dataclass(frozen=True)
class TokenGrids(Payload):
    """`count` grids of token indices (count, side, side)."""

    count: int
    side: int
    indices: bytes

    @classmethod
    def of(cls, indices: NDArray[np.int64]) -> Self:
        """The payload of `indices` i64 (count, side, side)."""
        return cls(len(indices), indices.shape[1], indices.astype("<i4").tobytes())

    def array(self) -> NDArray[np.int64]:
        """The grids as i64 (count, side, side)."""
        flat = np.frombuffer(self.indices, dtype="<i4").astype(np.int64)
        return flat.reshape(self.count, self.side, self.side)


@dataclass(frozen=True)
class DetokenizeJob(TokenGrids):
    """Token grids to turn into pictures of `format`."""

    kind: ClassVar[Kind] = "detokenize"
    holds_tokens: ClassVar[bool] = True

    format: str = "png"

    @property
    def rows(self) -> int:
        """Pictures of the job."""
        return self.count

    @classmethod
    def one(cls, grid: NDArray[np.int64], file_format: str) -> DetokenizeJob:
        """A job for one grid of indices i64 (side, side)."""
        return cls(1, len(grid), grid.astype("<i4").tobytes(), file_format)


JobPayload = GenerateJob | TokenizeJob | DetokenizeJob
JOB_PAYLOADS: dict[str, type[JobPayload]] = {
    one.kind: one for one in (GenerateJob, TokenizeJob, DetokenizeJob)
}


def unpack_job(kind: str, payload: bytes) -> JobPayload:
    """Parse the payload of a job of `kind`; JobFailed for anything else."""
    if kind not in JOB_PAYLOADS:
        raise JobFailed(f"job kind {kind!r} is unknown; known are {', '.join(JOB_PAYLOADS)}")
    return JOB_PAYLOADS[kind].unpack(payload)


@dataclass(frozen=True)
class Tokens(TokenGrids):
    """Result of tokenize. `bundle`: what made it, if not the revision that the job was given to."""

    bundle: str = ""


@dataclass(frozen=True)
class Pictures(Payload):
    """Result of generate and detokenize: one file per picture, and what any gateway needs to answer for it.

    `format` is that of every file; a `tokens` file is a TokenGrids payload of one grid, an `npy` file holds
    the pixels. `class_ids` and `seeds` are those of the job, one per file; both are empty for detokenize.
    `forward_passes` are the rows that one picture cost the network. `bundle`: as in Tokens.
    """

    files: tuple[bytes, ...]
    steps: int
    compute_ms: float
    format: str
    class_ids: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    forward_passes: int = 0
    bundle: str = ""
