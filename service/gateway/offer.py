"""What a gateway offers by its bundle and settings: bounds and names that requests are checked against."""

from __future__ import annotations

import difflib
import heapq
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

from models.bundle import Manifest
from models.sampling_config import SamplingConfig
from service.errors import InvalidRequest
from service.gateway.refusals import shorten
from service.settings import Settings

_SUGGESTIONS = 3
_CANDIDATES = 20
_COMPARED = 60  # letters of an unknown name


@dataclass(frozen=True)
class Offer:
    """`max_steps`: the bit groups of a picture, 0 without a generator. `num_codes`: of token indices.

    `created_s`: Unix time at which the revision was written or, where its files are not at hand, loaded.
    """

    model: str
    bundle: str
    created_s: int
    licence: str
    image_size: int
    grid: tuple[int, int]
    bits: int
    num_codes: int
    class_names: tuple[str, ...]
    sampling: SamplingConfig
    max_steps: int
    max_images: int
    upload_bytes: int

    @classmethod
    def of(cls, manifest: Manifest, revision: str, created_s: int, settings: Settings) -> Offer:
        """The offer of a gateway with these settings in front of workers with this revision of a bundle."""
        generator = manifest.generator
        return cls(
            model=manifest.name,
            bundle=f"{manifest.name}@{revision}",
            created_s=created_s,
            licence=manifest.licence,
            image_size=manifest.image_size,
            grid=(manifest.grid, manifest.grid),
            bits=manifest.tokenizer.bits,
            num_codes=manifest.tokenizer.num_codes,
            class_names=manifest.class_names,
            sampling=manifest.sampling,
            max_steps=generator.num_groups if generator else 0,
            max_images=settings.max_images,
            upload_bytes=settings.upload_bytes,
        )

    @property
    def has_generator(self) -> bool:
        """Whether pictures can be drawn."""
        return self.max_steps > 0

    def check_class_id(self, class_id: int, field: str = "class_id") -> int:
        """Return `class_id`; InvalidRequest, which calls it `field`, when there is no such class."""
        if not 0 <= class_id < len(self.class_names):
            got, last = shorten(class_id), len(self.class_names) - 1
            raise InvalidRequest(f"{field} is {got}; allowed are 0 to {last}")
        return class_id

    def class_id(self, name: str, field: str = "class_name") -> int:
        """The class called `name`; InvalidRequest, with the nearest names, unless there is exactly one.

        `field`: what the request calls the name.
        """
        ids = self._ids.get(name, [])
        if len(ids) == 1:
            return ids[0]
        if ids:
            several = " and ".join(map(str, ids))
            raise InvalidRequest(
                f"{field} {name!r} is the name of the classes {several}; use their numbers instead"
            )
        hint = " or ".join(map(repr, self._nearest(name))) or "one of those in GET /classes"
        raise InvalidRequest(f"{field} is {name!r}, which is unknown; did you mean {hint}?")

    def _nearest(self, name: str) -> list[str]:
        """The names most like `name`. Comparing it with a thousand of them would hold up everybody."""
        plain = _plain(name[:_COMPARED])
        pairs = _pairs(plain)
        likely = heapq.nlargest(_CANDIDATES, self._plain_names, lambda one: _share(pairs, self._pairs[one]))
        near = difflib.get_close_matches(plain, likely, _SUGGESTIONS, cutoff=0.5)
        return [self._plain_names[one] for one in near]

    def search(self, text: str) -> list[int]:
        """Ids of the classes whose name contains `text`, in any case, with spaces for underscores."""
        wanted = _plain(text)
        return [index for index, name in enumerate(self.class_names) if wanted in _plain(name)]

    @cached_property
    def _ids(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(self.class_names):
            ids[name].append(index)
        return dict(ids)

    @cached_property
    def _plain_names(self) -> dict[str, str]:
        return {_plain(name): name for name in self.class_names}

    @cached_property
    def _pairs(self) -> dict[str, frozenset[str]]:
        return {plain: _pairs(plain) for plain in self._plain_names}


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def _pairs(plain: str) -> frozenset[str]:
    """The pairs of neighbouring letters, with the space around the name."""
    text = f" {plain} "
    return frozenset(text[at : at + 2] for at in range(len(text) - 1))


def _share(one: frozenset[str], other: frozenset[str]) -> float:
    """How much two sets have in common, 0 to 1."""
    return 2 * len(one & other) / (len(one) + len(other))
