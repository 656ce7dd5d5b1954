"""Configurations of tokenizer, generator and sampling: frozen, checked when built, standard library only.

Field names of the two networks are those of the published YAML files.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from models.errors import ConfigError

T = TypeVar("T")

MASK_SCHEDULES = ("arccos", "cosine", "linear", "square", "root")
GUIDANCE_ANNEALINGS = ("none", "linear", "cosine")
MAX_BITS = 24


def from_mapping(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build the dataclass `cls` from parsed JSON or YAML, where a list stands for a tuple.

    ConfigError names a key that is unknown, missing or of another type than its field.
    """
    known = {field.name: field.type for field in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(f"{cls.__name__}: unknown {', '.join(unknown)}; allowed are {', '.join(known)}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    hints = _type_hints(cls)  # type: ignore[arg-type]
    for key, value in given.items():
        if not _fits(value, hints[key]):
            raise ConfigError(f"{cls.__name__}: {key} is {str(value)[:80]!r}; its type is {known[key]}")
    try:
        return cls(**given)
    except TypeError as exc:
        raise ConfigError(f"{cls.__name__}: {exc}") from exc


@cache
def _type_hints(cls: Hashable) -> dict[str, Any]:
    """Resolving annotations takes longer than all the checks, and a worker parses a config for each job."""
    return get_type_hints(cls)


def _fits(value: object, hint: Any) -> bool:
    """Whether `value` has the annotated type: an int is a float too, booleans and NaN are no numbers."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is UnionType:
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        wanted = parts[:1] * len(value) if isinstance(value, tuple) and parts[-1] is Ellipsis else parts
        return isinstance(value, tuple) and len(value) == len(wanted) and all(map(_fits, value, wanted))
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(item, parts[1]) for item in value.values())
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, hint)


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_positive(config: object, *names: str) -> None:
    """Raise ConfigError unless each named field of `config` is an integer of at least 1."""
    for name in names:
        value = getattr(config, name)
        require(
            isinstance(value, int) and not isinstance(value, bool) and value >= 1,
            f"{name} is {value!r}; a whole number of at least 1 is needed",
        )


@dataclass(frozen=True)
class TokenizerConfig:
    """Convolutional tokenizer (MaskBit paper, section 3.1).

    `token_size` is the number of latent channels: K, the bits of a token, when lookup-free. `norm_groups`
    is ours: with 32 groups on 32 channels GroupNorm normalises every channel by itself and erases flat
    colour, so small models use fewer groups.
    """

    model_class: str = "vqgan+"
    quantizer_type: str = "lookup-free"
    num_channels: int = 3
    hidden_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_resolutions: int = 5
    num_res_blocks: int = 2
    num_res_blocks_decoder: int | None = None
    sample_with_conv: bool = True
    norm_groups: int = 32
    token_size: int = 10
    codebook_size: int = 1024
    use_l2_normalisation: bool = False
    commitment_cost: float = 0.25
    entropy_loss_weight: float = 0.02
    entropy_loss_temperature: float = 0.01
    entropy_gamma: float = 1.0

    def __post_init__(self) -> None:
        require_positive(
            self,
            "num_channels",
            "hidden_channels",
            "num_resolutions",
            "num_res_blocks",
            "norm_groups",
            "token_size",
            "codebook_size",
        )
        require(self.model_class == "vqgan+", f"model_class is {self.model_class!r}; allowed is 'vqgan+'")
        require(
            self.quantizer_type in ("lookup-free", "lookup"),
            f"quantizer_type is {self.quantizer_type!r}; allowed are 'lookup-free' and 'lookup'",
        )
        require(
            len(self.channel_mult) == self.num_resolutions,
            f"channel_mult has {len(self.channel_mult)} entries; num_resolutions is {self.num_resolutions}",
        )
        require(
            all(isinstance(m, int) and m >= 1 for m in self.channel_mult),
            f"channel_mult is {self.channel_mult}; its entries are whole numbers of at least 1",
        )
        for multiplier in self.channel_mult:
            channels = multiplier * self.hidden_channels
            require(
                channels % self.norm_groups == 0,
                f"norm_groups is {self.norm_groups}; it must divide {channels} channels",
            )
        if self.quantizer_type == "lookup-free":
            require(
                self.token_size <= MAX_BITS,
                f"token_size is {self.token_size}; lookup-free tokens have 1 to {MAX_BITS} bits",
            )
        if self.num_res_blocks_decoder is not None:
            require_positive(self, "num_res_blocks_decoder")

    @property
    def stride(self) -> int:
        """Pixels per token along each side."""
        return 1 << (self.num_resolutions - 1)

    @property
    def num_codes(self) -> int:
        """Number of distinct token indices; `codebook_size` may be stale in published lookup-free configs."""
        return 1 << self.token_size if self.quantizer_type == "lookup-free" else self.codebook_size

    @property
    def bits(self) -> int:
        """Bits that one token index needs."""
        return (self.num_codes - 1).bit_length()


@dataclass(frozen=True)
class GeneratorConfig:
    """Masked transformer over bit tokens (MaskBit paper, section 3.2)."""

    model_cls: str = "lfq_bert"
    bits: int = 14
    hidden_dim: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_dim: int = 4096
    dropout: float = 0.1
    codebook_splits: int = 2
    use_prenorm: bool = False
    img_size: int = 256
    input_stride: int = 16
    nclass: int = 1000

    def __post_init__(self) -> None:
        require_positive(
            self,
            "bits",
            "hidden_dim",
            "depth",
            "heads",
            "mlp_dim",
            "codebook_splits",
            "img_size",
            "input_stride",
            "nclass",
        )
        require(self.model_cls == "lfq_bert", f"model_cls is {self.model_cls!r}; allowed is 'lfq_bert'")
        require(self.bits <= MAX_BITS, f"bits is {self.bits}; tokens have 1 to {MAX_BITS} bits")
        require(0.0 <= self.dropout < 1.0, f"dropout is {self.dropout}; allowed is 0 <= dropout < 1")
        require(
            self.bits % self.codebook_splits == 0,
            f"codebook_splits is {self.codebook_splits}; it must divide {self.bits} bits",
        )
        require(self.hidden_dim % self.heads == 0, f"heads is {self.heads}; it must divide {self.hidden_dim}")
        require(
            self.img_size % self.input_stride == 0,
            f"img_size is {self.img_size}; it must be a multiple of input_stride, {self.input_stride}",
        )

    @property
    def grid(self) -> int:
        """Tokens along each side of the picture."""
        return self.img_size // self.input_stride

    @property
    def num_tokens(self) -> int:
        """N, the tokens of a picture."""
        return self.grid**2

    @property
    def group_bits(self) -> int:
        """b, the bits of a group."""
        return self.bits // self.codebook_splits

    @property
    def group_codes(self) -> int:
        """2^b, the values of a group, and the mask id, which follows them."""
        return 1 << self.group_bits


@dataclass(frozen=True)
class SamplingConfig:
    """How pictures are drawn; names are those of the HTTP API (SPEC section 3 gives the formulas)."""

    steps: int = 64
    guidance_scale: float = 7.1
    guidance_annealing: str = "cosine"
    guidance_pow: float = 3.0
    temperature: float = 1.0
    noise_temperature: float = 7.8
    mask_schedule: str = "arccos"
    anneal_temperature: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "steps")
        require(self.guidance_scale >= 0, f"guidance_scale is {self.guidance_scale}; it must be at least 0")
        require(self.guidance_pow > 0, f"guidance_pow is {self.guidance_pow}; it must be above 0")
        require(self.temperature > 0, f"temperature is {self.temperature}; it must be above 0")
        require(
            self.noise_temperature >= 0,
            f"noise_temperature is {self.noise_temperature}; it must be at least 0",
        )
        require(
            self.mask_schedule in MASK_SCHEDULES,
            f"mask_schedule is {self.mask_schedule!r}; allowed are {', '.join(MASK_SCHEDULES)}",
        )
        require(
            self.guidance_annealing in GUIDANCE_ANNEALINGS,
            f"guidance_annealing is {self.guidance_annealing!r}; "
            f"allowed are {', '.join(GUIDANCE_ANNEALINGS)}",
        )
