"""The generator `lfq_bert`: a transformer that reads and predicts groups of bits (SPEC section 2)."""

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
        batch, length, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


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


class LfqBert(nn.Module):
    """Logits of all bit groups from partly masked groups and a class, without any token embedding table."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_dim
        self.pos_emb = nn.Parameter(torch.empty(1, config.num_tokens + 1, width))
        self.class_emb = nn.Embedding(config.nclass + 1, width)
        self.input_proj = nn.Linear(config.bits, width)
        self.first_layer = nn.Sequential(layer_norm(width), nn.Dropout(config.dropout))
        self.transformer = Transformer(config)
        if config.use_prenorm:
            self.norm_after_transformer = layer_norm(width)
        self.last_layer = nn.Sequential(nn.Linear(width, width), nn.GELU(), layer_norm(width))
        self.prediction_layer = nn.Linear(width, config.codebook_splits * config.group_codes)
        self.register_buffer("bit_table", _bit_table(config.group_bits), persistent=False)
        self._initialise()

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
        config = self.config
        # A table look-up gives the b values of a group: +-1 per bit, zeros for the mask id in its last row.
        bits = F.embedding(tokens, self.bit_table).flatten(2)  # type: ignore[arg-type]
        x = torch.cat([self.input_proj(bits), self.class_emb(labels)[:, None]], dim=1) + self.pos_emb
        x = self.transformer(self.first_layer(x))
        if config.use_prenorm:
            x = self.norm_after_transformer(x)
        logits = self.prediction_layer(self.last_layer(x))[:, : config.num_tokens]
        return logits.unflatten(-1, (config.codebook_splits, config.group_codes))  # type: ignore[no-any-return]


def _bit_table(bits: int) -> Tensor:
    """(2^bits + 1, bits): +-1 for every bit of every group value, then a row of zeros for the mask id."""
    values = torch.arange(1 << bits)[:, None] >> torch.arange(bits) & 1
    return torch.cat([values.float() * 2 - 1, torch.zeros(1, bits)])
