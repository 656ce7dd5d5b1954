"""Configurations of tokenizer and generator: frozen, checked when built, standard library only.

Field names are those of the published YAML files.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.validation import require, require_one_of, require_positive

MAX_BITS = 24
TOKENIZERS = ("vqgan+", "maskgit", "taming")
QUANTIZERS = ("lookup-free", "lookup")
GENERATORS = ("lfq_bert", "bert")


@dataclass(frozen=True)
class TokenizerConfig:
    """Convolutional tokenizer (MaskBit paper, section 3.1).

    `maskgit` differs from `vqgan+` in the numbering of the decoder's levels alone; `taming` is the original
    VQGAN, for inference only. `token_size` is the number of latent channels: K, the bits of a token, when
    lookup-free. `norm_groups` is ours: with 32 groups on 32 channels GroupNorm normalises every channel by
    itself and erases flat colour, so small models use fewer groups.
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
        require_one_of(self, "model_class", TOKENIZERS)
        require_one_of(self, "quantizer_type", QUANTIZERS)
        require(
            self.model_class != "taming" or self.quantizer_type == "lookup",
            f"quantizer_type is {self.quantizer_type!r}; the model class 'taming' has 'lookup' only",
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
    """Masked transformer over the tokens' groups of bits (MaskBit paper, section 3.2).

    `lfq_bert` reads the bits themselves, `bert` an embedding of each group.
    """

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
        require_one_of(self, "model_cls", GENERATORS)
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
    def num_groups(self) -> int:
        """The bit groups of a picture, N m: the most steps that drawing one can take."""
        return self.num_tokens * self.codebook_splits

    @property
    def group_bits(self) -> int:
        """b, the bits of a group."""
        return self.bits // self.codebook_splits

    @property
    def group_codes(self) -> int:
        """2^b, the values of a group, and the mask id, which follows them."""
        return 1 << self.group_bits
