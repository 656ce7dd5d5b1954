"""One labelled picture, still compressed, and the interface of what pictures are read from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from models.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """`index` counts the samples of `shard` from 0; `fault`, where it is not empty, says what is wrong."""

    shard: str
    index: int
    key: str
    image: bytes
    label: int
    fault: str = ""

    def __str__(self) -> str:
        return f"sample {self.key} of {self.shard}"

    def content(self) -> bytes:
        """The picture's bytes; InputError for a sample with a fault."""
        if self.fault:
            raise InputError(self.fault)
        return self.image


class Shard(Protocol):
    """A part of a data set that is read from its beginning, without the rest."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def read(self, start: int = 0, step: int = 1) -> Iterator[Sample]:
        """Samples `start`, `start + step`, …; ConfigError, naming the shard, when it cannot be read."""


def log_skipped(sample: Sample, reason: object) -> None:
    """Say that `sample` was left out, and why."""
    log.warning("%s was skipped: %s", sample, reason)
