"""The token cache: several crops of every training picture as packed tokens, in files that are mapped.

A folder: `cache.json` (CacheManifest), written last, and parts. A part is one .npy file of records, one a
picture: its `label` and its `tokens`, `variants` rows of bytes as `models.bits.pack` makes them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.bits import Indices, pack
from models.bundle import file_digest
from models.errors import ConfigError
from models.validation import require
from training.cache.manifest import (
    BUILD_PLAN,
    MANIFEST,
    CacheManifest,
    CachePlan,
    Part,
    cached_preprocessing,
    preprocessing_of,
)
from training.data.config import DatasetConfig

if TYPE_CHECKING:
    from models.config import GeneratorConfig
    from models.tokenizer import Tokenizer

DECODER_KEYS = ("decoder.", "post_quant_conv.")

Records = NDArray[np.void]
PackedTokens = NDArray[np.uint8]


@dataclass(frozen=True)
class TokenCache:
    """An opened cache; pictures are numbered from 0 through all parts."""

    manifest: CacheManifest
    parts: tuple[Records, ...]

    @property
    def plan(self) -> CachePlan:
        """How the cache was made."""
        return self.manifest.plan

    @cached_property
    def _ends(self) -> Indices:
        return np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return self.manifest.pictures

    def read(self, pictures: Indices, variants: Indices) -> tuple[PackedTokens, Indices]:
        """Packed tokens u8 (n, bytes_per_crop) and labels i64 (n,) of one variant each of n `pictures`."""
        found = np.searchsorted(self._ends, pictures, side="right")
        packed = np.empty((len(pictures), self.plan.bytes_per_crop), np.uint8)
        labels = np.empty(len(pictures), np.int64)
        for number in np.unique(found):
            here = np.flatnonzero(found == number)
            records = self.parts[number]
            rows = pictures[here] - (self._ends[number] - len(records))
            packed[here] = records["tokens"][rows, variants[here]]
            labels[here] = records["label"][rows]
        return packed, labels


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of what decides the tokens of `tokenizer`: its encoder and quantizer, not its decoder."""
    config = tokenizer.config
    digest = hashlib.sha256(
        repr((config.model_class, config.quantizer_type, config.norm_groups)).encode()
        + repr((config.use_l2_normalisation, config.sample_with_conv)).encode()
    )
    for key, value in sorted(tokenizer.state_dict().items()):
        if not key.startswith(DECODER_KEYS):
            digest.update(f"{key} {tuple(value.shape)}".encode())
            digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def as_records(plan: CachePlan, indices: Indices, labels: Sequence[int]) -> Records:
    """Records of pictures with `labels` from their token `indices` i64 (n, variants, N)."""
    records = np.zeros(len(labels), plan.record)
    records["label"] = labels
    for row, picture in zip(records, indices, strict=True):
        for variant, grid in enumerate(picture):
            row["tokens"][variant] = np.frombuffer(pack(grid, plan.bits), np.uint8)
    return records


def unpack_groups(packed: PackedTokens, num_tokens: int, bits: int, splits: int) -> Indices:
    """Groups i64 (n, num_tokens, splits) of `packed` (n, bytes), a crop a row: `pack` and `split_groups`.

    A group lies within the four bytes from the one in which it starts, as it has at most 24 bits.
    """
    width = bits // splits
    padded = np.zeros((len(packed), packed.shape[1] + 3), np.uint8)
    padded[:, :-3] = packed
    windows: NDArray[np.uint32] = np.ndarray(
        packed.shape, np.dtype("<u4"), buffer=padded, strides=(padded.shape[1], 1)
    )
    starts = np.arange(num_tokens * splits) * width
    groups = (windows[:, starts // 8] >> (starts % 8).astype(np.uint32)) & np.uint32((1 << width) - 1)
    return groups.astype(np.int64).reshape(-1, num_tokens, splits)


def npy_bytes(records: Records) -> bytes:
    """The .npy file of a part."""
    buffer = io.BytesIO()
    np.save(buffer, records)
    return buffer.getvalue()


def open_cache(path: Path) -> TokenCache:
    """The cache in the folder `path`, all of which is read once to compare it with its digests.

    Raises ConfigError for a cache that is missing, unfinished or damaged, and names the file.
    """
    manifest = read_manifest(path)
    return TokenCache(manifest, tuple(_open_part(path, part, manifest.plan) for part in manifest.parts))


def read_manifest(path: Path) -> CacheManifest:
    """The manifest of the cache in `path`; ConfigError where there is none, or a damaged one."""
    try:
        return CacheManifest.from_json((path / MANIFEST).read_text(encoding="utf-8"))
    except OSError as exc:
        if (path / BUILD_PLAN).exists():
            raise ConfigError(
                f"token cache {path} is unfinished; the same `maskbit data cache` command completes it"
            ) from exc
        raise ConfigError(f"no token cache at {path}: {MANIFEST} cannot be read ({exc.strerror})") from exc
    except (ConfigError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{path / MANIFEST}: {exc}") from exc


def _open_part(path: Path, part: Part, plan: CachePlan) -> Records:
    file = path / part.file
    try:
        digest = file_digest(file)
        require(
            digest == part.sha256,
            f"{file} is damaged: its SHA-256 is {digest}, {MANIFEST} says {part.sha256}",
        )
        records = map_records(file)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{file} cannot be read: {exc}") from exc
    require(
        records.dtype == plan.record and len(records) == part.pictures,
        f"{file} holds {len(records)} records of {records.dtype}; "
        f"{MANIFEST} says {part.pictures} of {plan.record}",
    )
    return records


def map_records(file: Path) -> Records:
    """The records of a part, left on disk until they are used."""
    # As a plain array: indexing is several times as fast as that of np.memmap.
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


def check_fits(
    cache: TokenCache, path: Path, data: DatasetConfig, model: GeneratorConfig, tokenizer: Tokenizer
) -> None:
    """Raise ConfigError unless the cache holds what the generator `model` reads, of this very tokenizer.

    Its crops must be made as `data` tells.
    """
    plan = cache.plan
    require(
        (plan.bits, plan.grid, plan.classes) == (model.bits, model.grid, model.nclass),
        f"token cache {path} holds {plan.grid}x{plan.grid} tokens of {plan.bits} bits and {plan.classes} "
        f"classes; the generator needs {model.grid}x{model.grid} of {model.bits} bits and {model.nclass}",
    )
    digest = tokenizer_digest(tokenizer)
    require(
        plan.tokenizer == digest,
        f"token cache {path} was made by another tokenizer, {plan.tokenizer[:12]}; "
        f"that of the recipe is {digest[:12]}",
    )
    made, wanted = cached_preprocessing(plan), preprocessing_of(data)
    for key, value in wanted.items():
        require(
            made.get(key) == value,
            f"token cache {path} was made with dataset.preprocessing.{key} {made.get(key)!r}, the recipe has "
            f"{value!r}; set it as in the cache, or make another cache of this recipe (`maskbit data cache`)",
        )
