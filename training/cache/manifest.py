"""What a token cache says of itself: the plan by which it is built, and the content of `cache.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.errors import ConfigError
from models.validation import from_mapping, require, require_positive

if TYPE_CHECKING:
    from training.data.config import DatasetConfig

FORMAT_VERSION = 1
MANIFEST = "cache.json"
BUILD_PLAN = "build.json"  # stands in place of the manifest as long as the cache is being built
CROP_SETTINGS = (
    "resolution",
    "use_random_crop",
    "min_scale",
    "use_aspect_ratio_aug",
    "aspect_ratio",
    "interpolation",
)
RANDOM_CROP_SETTINGS = ("min_scale", "use_aspect_ratio_aug", "aspect_ratio")


@dataclass(frozen=True)
class CachePlan:
    """What decides the content of a cache.

    Every picture is stored in `variants` token grids of `grid` x `grid` tokens of `bits` bits: `crops` of
    them, or twice as many where both mirror images are stored. `flips` is "none", "drawn" (each crop is
    mirrored or not) or "stored". `preprocessing` holds the crop settings of the recipe, `tokenizer` is its
    `tokenizer_digest` and `tokenizer_config` its configuration. Labels are 0 to `classes` - 1.
    """

    bits: int
    grid: int
    classes: int
    crops: int
    flips: str
    preprocessing: Mapping[str, Any]
    tokenizer: str
    tokenizer_config: Mapping[str, Any]
    shards: tuple[str, ...]
    samples_per_part: int
    seed: int
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        require(
            self.format_version == FORMAT_VERSION,
            f"format_version is {self.format_version}; this version reads {FORMAT_VERSION}",
        )
        require_positive(self, "bits", "grid", "classes", "crops", "samples_per_part")
        require(self.seed >= 0, f"seed is {self.seed}; it must be at least 0")
        require(
            self.flips in ("none", "drawn", "stored"),
            f"flips is {self.flips!r}; allowed are 'none', 'drawn' and 'stored'",
        )

    @property
    def variants(self) -> int:
        """Token grids of a picture."""
        return self.crops * (2 if self.flips == "stored" else 1)

    @property
    def num_tokens(self) -> int:
        """N, the tokens of a crop."""
        return self.grid**2

    @property
    def bytes_per_crop(self) -> int:
        """Bytes of one packed token grid."""
        return -(-self.num_tokens * self.bits // 8)

    @property
    def record(self) -> np.dtype[np.void]:
        """NumPy type of what is stored of a picture."""
        return np.dtype([("label", "<i4"), ("tokens", "u1", (self.variants, self.bytes_per_crop))])


@dataclass(frozen=True)
class Part:
    """One file of records; `samples` counts what it was made of, with those that were no sound pictures."""

    file: str
    samples: int
    pictures: int
    sha256: str

    def __post_init__(self) -> None:
        require(Path(self.file).name == self.file, f"file is {self.file!r}; a plain file name is needed")
        require(
            0 <= self.pictures <= self.samples,
            f"{self.file}: pictures is {self.pictures}; allowed are 0 to samples, {self.samples}",
        )


@dataclass(frozen=True)
class CacheManifest:
    """The content of `cache.json`."""

    plan: CachePlan
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        require(self.pictures > 0, "there are no pictures in it")

    @property
    def pictures(self) -> int:
        """Pictures in the cache."""
        return sum(part.pictures for part in self.parts)

    @property
    def skipped(self) -> int:
        """Samples of the shards that were no sound pictures."""
        return sum(part.samples for part in self.parts) - self.pictures

    def to_json(self) -> str:
        """Text of `cache.json`."""
        return as_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CacheManifest:
        """Parse `cache.json`; ConfigError for anything that does not belong there."""
        values = json.loads(text)
        if not isinstance(values, dict) or not isinstance(values.get("plan"), dict):
            raise ConfigError("it must hold a JSON object with a plan")
        parts = values.get("parts")
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise ConfigError("parts must be a list of JSON objects")
        plan = from_mapping(CachePlan, values["plan"])
        return from_mapping(
            cls, {**values, "plan": plan, "parts": [from_mapping(Part, part) for part in parts]}
        )


def cached_preprocessing(plan: CachePlan) -> dict[str, Any]:
    """The crop settings of a cache that have an effect, and whether its crops are mirrored."""
    return _effective(plan.preprocessing) | {"flip": plan.flips != "none"}


def preprocessing_of(data: DatasetConfig) -> dict[str, Any]:
    """The same of a recipe."""
    return _effective({key: getattr(data, key) for key in CROP_SETTINGS}) | {"flip": data.flip}


def _effective(settings: Mapping[str, Any]) -> dict[str, Any]:
    idle: tuple[str, ...] = ()
    if not settings.get("use_random_crop"):
        idle = RANDOM_CROP_SETTINGS
    elif not settings.get("use_aspect_ratio_aug"):
        idle = ("aspect_ratio",)
    return {
        key: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
        for key, value in settings.items()
        if key not in idle
    }


def as_json(values: Any) -> str:
    """The text of a JSON file."""
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
