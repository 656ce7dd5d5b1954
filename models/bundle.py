"""A model on disk: `bundle.json` with configurations, class names and provenance, beside safetensors weights.

Reading one needs neither torch nor safetensors, so that the gateway can know a model without loading it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from models.config import GeneratorConfig, TokenizerConfig
from models.errors import BundleError, ConfigError
from models.sampling_config import SamplingConfig
from models.validation import from_mapping, require, require_positive

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
TOKENIZER_WEIGHTS = "tokenizer.safetensors"
GENERATOR_WEIGHTS = "generator.safetensors"
BUNDLED = Path(__file__).parent / "bundles"
HUB_PREFIX = "hf://"


@dataclass(frozen=True)
class Manifest:
    """The content of `bundle.json`; `files` maps file names to SHA-256 digests, `image_size` is in pixels."""

    name: str
    image_size: int
    tokenizer: TokenizerConfig
    generator: GeneratorConfig | None
    sampling: SamplingConfig
    class_names: tuple[str, ...]
    licence: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        require(
            self.format_version == FORMAT_VERSION,
            f"format_version is {self.format_version}; this version reads {FORMAT_VERSION}",
        )
        require_positive(self, "image_size")
        for name in self.files:
            require(_stays_inside(name), f"files lists {name!r}; only paths inside the bundle are allowed")
        require(
            self.image_size % self.tokenizer.stride == 0,
            f"image_size is {self.image_size}; the tokenizer needs a multiple of {self.tokenizer.stride}",
        )
        generator = self.generator
        if generator is None:
            return
        require(
            1 << generator.bits == self.tokenizer.num_codes,
            f"generator draws {generator.bits} bits a token, tokenizer has {self.tokenizer.num_codes} codes",
        )
        require(
            (generator.img_size, generator.input_stride) == (self.image_size, self.tokenizer.stride),
            f"generator is for {generator.img_size} pixels at stride {generator.input_stride}, "
            f"the bundle for {self.image_size} at {self.tokenizer.stride}",
        )
        require(
            len(self.class_names) == generator.nclass,
            f"{len(self.class_names)} class names for {generator.nclass} classes",
        )

    @property
    def grid(self) -> int:
        """Tokens along each side of a picture."""
        return self.image_size // self.tokenizer.stride

    def understands(self, other: Manifest, *, tokens: bool) -> bool:
        """Whether what is asked of `other`, with token grids in it or without, means the same here.

        Weights may differ; but only the same tokenizer gives tokens the same meaning.
        """
        return (not tokens or self._tokenizer_digest == other._tokenizer_digest) and (
            self._meaning == other._meaning
        )

    @property
    def _meaning(self) -> tuple[object, ...]:
        groups = self.generator.num_groups if self.generator else 0
        return self.image_size, self.grid, self.tokenizer.num_codes, self.class_names, groups

    @property
    def _tokenizer_digest(self) -> str:
        return self.files.get(TOKENIZER_WEIGHTS, "")

    def to_json(self) -> str:
        """Text of `bundle.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse `bundle.json`; ConfigError for anything that does not belong there."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ConfigError("it must hold one JSON object")
        if values.get("format_version") != FORMAT_VERSION:
            raise ConfigError(
                f"format_version is {values.get('format_version')!r}; this version reads {FORMAT_VERSION}"
            )
        parts: dict[str, type[Any]] = {
            "tokenizer": TokenizerConfig,
            "generator": GeneratorConfig,
            "sampling": SamplingConfig,
        }
        for key, part in parts.items():
            if isinstance(values.get(key), dict):
                values[key] = from_mapping(part, values[key])
        return from_mapping(cls, values)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was found and whose manifest is sound; weights are read and checked when asked for.

    `text` is what `bundle.json` held when it was found: the folder may hold another revision by now.
    """

    path: Path
    manifest: Manifest
    text: str

    @cached_property
    def revision(self) -> str:
        """First 12 hexadecimal digits of the manifest's SHA-256, which covers the files by their digests."""
        return revision_of(self.text)

    @property
    def ref(self) -> str:
        """`name@revision`, which names these very weights."""
        return f"{self.manifest.name}@{self.revision}"

    def weights_file(self, name: str) -> Path:
        """Path of the weights `name` after its digest was checked; BundleError when missing or damaged."""
        path = self.path / name
        if name not in self.manifest.files:
            raise BundleError(
                f"bundle {self.path} has no {name}; it holds {', '.join(self.manifest.files) or 'no files'}"
            )
        try:
            digest = file_digest(path)
        except OSError as exc:
            raise BundleError(f"{path} cannot be read: {exc.strerror}") from exc
        if digest != self.manifest.files[name]:
            raise BundleError(
                f"{path} is damaged: its SHA-256 is {digest}, the manifest says {self.manifest.files[name]}"
            )
        return path


def revision_of(text: str) -> str:
    """The revision of a bundle by the text of its `bundle.json`."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bundled_names() -> list[str]:
    """Names of the models that are installed with this package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{MANIFEST}"))


def open_bundle(ref: str) -> Bundle:
    """Find the bundle `ref`: a folder, the name of a bundled model, or `hf://owner/name[@revision]`.

    Raises BundleError that says what is wrong and what exists.
    """
    path = _locate(ref)
    try:
        text = (path / MANIFEST).read_bytes().decode()
        manifest = Manifest.from_json(text)
    except OSError as exc:
        raise BundleError(f"bundle {path} has no readable {MANIFEST}: {exc.strerror}") from exc
    except (ConfigError, ValueError, RecursionError) as exc:
        raise BundleError(f"{path / MANIFEST}: {exc}") from exc
    return Bundle(path, manifest, text)


def open_bundles(refs: Sequence[str]) -> list[Bundle]:
    """The bundles of one deployment. Raises BundleError as `open_bundle`, ConfigError for two of one name."""
    bundles: dict[str, Bundle] = {}
    for ref in refs:
        bundle = open_bundle(ref)
        other = bundles.setdefault(bundle.manifest.name, bundle)
        if other is not bundle:
            raise ConfigError(
                f"the bundles {other.path} and {bundle.path} are both called {bundle.manifest.name!r}; "
                "every model of a deployment needs a name of its own"
            )
    return list(bundles.values())


def _locate(ref: str) -> Path:
    if ref.startswith(HUB_PREFIX):
        return _download(ref)
    if ref in bundled_names():
        return BUNDLED / ref
    # os.path says no where pathlib raises: the home of an unknown user, a name that is too long.
    path = os.path.expanduser(ref)
    if not os.path.isdir(path):
        known = ", ".join(bundled_names()) or "none"
        raise BundleError(
            f"no bundle {ref!r}: it is neither a folder nor a bundled model ({known}) nor hf://owner/name"
        )
    # Absolute, since a folder may be called as a bundled model is.
    return Path(path).absolute()


def _download(ref: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as exc:
        raise BundleError(f"{ref}: the package huggingface_hub is needed to load from the Hub") from exc
    name, _, revision = ref.removeprefix(HUB_PREFIX).partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise BundleError(f"{ref} cannot be loaded from the Hub: {reason}") from exc
