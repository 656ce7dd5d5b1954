"""The generators `lfq_bert` and `bert`: transformers that read and predict bit groups (SPEC section 2)."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import GeneratorConfig

LAYER_NORM_EPS = 1e-12
INIT_STD = 0.02


def layer_norm(width: int) -> nn.LayerNorm:
    """LayerNorm with the published eps."""
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS)


class MultiHeadAttention(nn.Module):
    """`scaled_dot_product_attention` under the key names of `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        return self.out_proj(attend(qkv, self.heads, self.dropout if self.training else 0.0))  # type: ignore[no-any-return]


def attend(qkv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
    """Attention (B, T, width) of queries, keys and values side by side in `qkv` (B, T, 3 * width)."""
    batch, length, width = qkv.shape
    query, key, value = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    return mixed.transpose(1, 2).reshape(batch, length, width // 3)


class Attention(nn.Module):
    """Attention sub-block: residual and norm around `mha`."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.prenorm = config.use_prenorm
        self.mha = MultiHeadAttention(config.hidden_dim, config.heads, config.dropout)
        self.norm = layer_norm(config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.prenorm:
            return x + self.dropout(self.mha(self.norm(x)))  # type: ignore[no-any-return]
        return self.norm(x + self.dropout(self.mha(x)))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Feed-forward sub-block: residual and norm around Linear, GELU, Linear, Dropout."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.prenorm = config.use_prenorm
        self.net = nn.Sequential(
            nn.Linear(config.hidden_dim, config.mlp_dim),
            nn.GELU(),
            nn.Linear(config.mlp_dim, config.hidden_dim),
            nn.Dropout(config.dropout),
        )
        self.norm = layer_norm(config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.prenorm:
            return x + self.net(self.norm(x))  # type: ignore[no-any-return]
        return self.norm(x + self.net(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """`depth` pairs of attention and MLP."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(config), Mlp(config)]) for _ in range(config.depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            attention, mlp = layer
            x = mlp(attention(x))
        return x


class Generator(nn.Module, ABC):
    """Logits of all bit groups from partly masked groups and a class; both kinds share the transformer."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_dim
        self.pos_emb = nn.Parameter(torch.empty(1, config.num_tokens + 1, width))
        self.class_emb = nn.Embedding(config.nclass + 1, width)
        self._add_input()
        self.first_layer = nn.Sequential(layer_norm(width), nn.Dropout(config.dropout))
        self.transformer = Transformer(config)
        if config.use_prenorm:
            self.norm_after_transformer = layer_norm(width)
        self.last_layer = nn.Sequential(nn.Linear(width, width), nn.GELU(), layer_norm(width))
        self._add_output()
        self._initialise()

    @abstractmethod
    def _add_input(self) -> None:
        """Make the modules that `_read` uses."""

    @abstractmethod
    def _add_output(self) -> None:
        """Make the modules that `_predict` uses beside those of the input."""

    @abstractmethod
    def _read(self, tokens: Tensor) -> Tensor:
        """Vectors (B, N, hidden_dim) of `tokens`."""

    @abstractmethod
    def _predict(self, x: Tensor) -> Tensor:
        """Logits (B, N, m, 2^b) from the transformer's vectors `x` (B, N, hidden_dim)."""

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, MultiHeadAttention):
                nn.init.trunc_normal_(module.in_proj_weight, std=INIT_STD)
        nn.init.trunc_normal_(self.pos_emb, std=INIT_STD)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, N, m, 2^b) of `tokens` i64 (B, N, m), values in [0, 2^b] with 2^b = masked.

        `labels` i64 (B,) in [0, nclass]; nclass means "no class".
        """
        x = torch.cat([self._read(tokens), self.class_emb(labels)[:, None]], dim=1) + self.pos_emb
        x = self.transformer(self.first_layer(x))
        if self.config.use_prenorm:
            x = self.norm_after_transformer(x)
        return self._predict(self.last_layer(x)[:, : self.config.num_tokens])


class LfqBert(Generator):
    """Reads the bits of unmasked groups themselves: there is no token embedding table."""

    def _add_input(self) -> None:
        config = self.config
        self.input_proj = nn.Linear(config.bits, config.hidden_dim)
        self.register_buffer("bit_table", _bit_table(config.group_bits), persistent=False)

    def _add_output(self) -> None:
        config = self.config
        self.prediction_layer = nn.Linear(config.hidden_dim, config.codebook_splits * config.group_codes)

    def _read(self, tokens: Tensor) -> Tensor:
        # A table look-up gives the b values of a group: +-1 per bit, zeros for the mask id in its last row.
        bits = F.embedding(tokens, self.bit_table).flatten(2)  # type: ignore[arg-type]
        return self.input_proj(bits)  # type: ignore[no-any-return]

    def _predict(self, x: Tensor) -> Tensor:
        logits = self.prediction_layer(x)
        return logits.unflatten(-1, (self.config.codebook_splits, self.config.group_codes))  # type: ignore[no-any-return]


class Bert(Generator):
    """Sums an embedding of each group; its logits compare the result with the same embeddings."""

    def _add_input(self) -> None:
        config = self.config
        self.tok_emb_list = nn.ModuleList(
            nn.Embedding(config.group_codes + 1, config.hidden_dim) for _ in range(config.codebook_splits)
        )

    def _add_output(self) -> None:
        config = self.config
        self.bias = nn.ParameterList(
            torch.zeros(config.num_tokens, config.group_codes) for _ in range(config.codebook_splits)
        )

    def _tables(self) -> list[Tensor]:
        return [table.weight for table in self.tok_emb_list]  # type: ignore[misc]

    def _read(self, tokens: Tensor) -> Tensor:
        embedded = [F.embedding(tokens[..., g], table) for g, table in enumerate(self._tables())]
        return torch.stack(embedded).sum(0)

    def _predict(self, x: Tensor) -> Tensor:
        # The last row of a table stands for the mask, which is never predicted.
        pairs = zip(self._tables(), self.bias, strict=True)
        return torch.stack([F.linear(x, table[:-1]) + bias for table, bias in pairs], dim=2)


def _bit_table(bits: int) -> Tensor:
    """(2^bits + 1, bits): +-1 for every bit of every group value, then a row of zeros for the mask id."""
    values = torch.arange(1 << bits)[:, None] >> torch.arange(bits) & 1
    return torch.cat([values.float() * 2 - 1, torch.zeros(1, bits)])
