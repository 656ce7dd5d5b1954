"""Lookup-free and lookup quantizers with their training losses (SPEC section 1, MaskBit paper section 3)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import TokenizerConfig

CLAMP = 1e-5  # floor inside the logarithm of both entropies


@dataclass(frozen=True)
class QuantizerLosses:
    """Scalar losses of a batch; `total` is what training adds, the weights already applied."""

    total: Tensor
    commitment: Tensor
    codebook: Tensor
    entropy: Tensor
    per_sample_entropy: Tensor
    average_entropy: Tensor


@dataclass(frozen=True)
class Quantized:
    """`codes` f32 (B, K, h, w) for the decoder, with straight-through gradient; `indices` i64 (B, h, w).

    `losses` is None outside training mode.
    """

    codes: Tensor
    indices: Tensor
    losses: QuantizerLosses | None


def _entropy(p: Tensor) -> Tensor:
    return -(p * torch.log(p.clamp_min(CLAMP))).sum(-1)


def _log_probabilities(log_one: Tensor, log_zero: Tensor) -> Tensor:
    """Log-probabilities (n, 2^k) of the codes of k independent bits, given those of each bit being 1 or 0."""
    codes = log_one.new_zeros(len(log_one), 1)
    for bit in range(log_one.shape[1]):
        values = torch.stack([log_zero[:, bit], log_one[:, bit]], dim=1)
        codes = (values[:, :, None] + codes[:, None]).flatten(1)
    return codes


def _entropy_of_pairs(high: Tensor, low: Tensor) -> Tensor:
    """`_entropy` (n,) of n distributions over pairs, whose log-probabilities are sums high + low.

    `high` (n, A) and `low` (n, B) are log-probabilities of the two independent parts. In each row the pairs
    below the clamp are, for every entry of `high`, the first so many of the sorted `low`. So two cumulative
    sums stand for all A * B pairs, and the result is exact.
    """
    low = low.sort(dim=1).values
    p_low = low.exp()
    mass = F.pad(p_low.cumsum(1), (1, 0))
    information = F.pad((p_low * low).cumsum(1), (1, 0))
    with torch.no_grad():
        clamped = torch.searchsorted(low, math.log(CLAMP) - high)
    mass_clamped = mass.gather(1, clamped)
    rest = mass[:, -1:] - mass_clamped
    information_rest = information[:, -1:] - information.gather(1, clamped)
    return -(high.exp() * (mass_clamped * math.log(CLAMP) + rest * high + information_rest)).sum(1)


class LookupFreeQuantizer(nn.Module):
    """Bit k of a token is 1 where latent channel k is above 0; there is no codebook and no parameter."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize `latents` (B, K, h, w), any range."""
        bits = latents > 0
        signs = bits.to(latents.dtype) * 2 - 1
        losses = self._losses(latents, signs) if self.training else None
        return Quantized(latents + (signs - latents).detach(), self.indices_of(bits), losses)

    @staticmethod
    def indices_of(bits: Tensor) -> Tensor:
        """Token indices i64 (B, h, w) of `bits` (B, K, h, w): channel 0 is the least significant bit."""
        weights = torch.tensor([1 << k for k in range(bits.shape[1])], device=bits.device)
        return (bits.long() * weights[:, None, None]).sum(1)

    def codes_of(self, indices: Tensor) -> Tensor:
        """Decoder input (B, K, h, w) of token `indices` i64 (B, h, w): bits as -1 and +1."""
        # Bit k is the parity of index / 2^k, rounded down: exact in f32 below 2^24. TensorRT has no operators
        # for bits.
        halves = torch.tensor([0.5**k for k in range(self.config.token_size)], device=indices.device)
        return (indices[:, None] * halves[:, None, None]).floor() % 2 * 2 - 1

    def _losses(self, latents: Tensor, signs: Tensor) -> QuantizerLosses:
        config = self.config
        latents = latents.float()
        commitment = config.commitment_cost * F.mse_loss(latents, signs.float())
        zero = commitment.new_zeros(())
        per_sample = average = entropy = zero
        if config.entropy_loss_weight != 0:
            flat = latents.movedim(1, -1).flatten(0, 2)
            per_sample, average = self.entropies(flat, config.entropy_loss_temperature)
            average = config.entropy_gamma * average
            entropy = config.entropy_loss_weight * (per_sample - average)
        return QuantizerLosses(commitment + entropy, commitment, zero, entropy, per_sample, average)

    @staticmethod
    def entropies(latents: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Mean per-sample entropy and entropy of the mean distribution of `latents` (n, K), in nats.

        The softmax over all 2^K codes factors into independent bits with log-odds 4 z / temperature, so two
        distributions over half codes of K/2 bits replace it: memory is n * 2^(K/2) + 2^K instead of n * 2^K.
        """
        # Neither autocast nor TF32 touches float64; their rounding would be larger than the clamp's effect.
        log_odds = latents.double() * (4 / temperature)
        log_one, log_zero = F.logsigmoid(log_odds), F.logsigmoid(-log_odds)
        half = latents.shape[1] // 2
        low = _log_probabilities(log_one[:, :half], log_zero[:, :half])
        high = _log_probabilities(log_one[:, half:], log_zero[:, half:])
        per_sample = _entropy_of_pairs(high, low).mean()
        average = _entropy((high.exp().T @ low.exp() / latents.shape[0]).flatten())
        return per_sample.to(latents.dtype), average.to(latents.dtype)


class LookupQuantizer(nn.Module):
    """Nearest codebook row by squared L2 distance, after optional L2 normalisation of both sides."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.codebook_size, config.token_size)

    def codebook(self) -> Tensor:
        """Codes (codebook_size, token_size) as they are compared and decoded."""
        weight = self.embedding.weight
        return F.normalize(weight, dim=-1) if self.config.use_l2_normalisation else weight

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize `latents` (B, token_size, h, w), any range."""
        if self.config.use_l2_normalisation:
            latents = F.normalize(latents, dim=1)
        flat = latents.movedim(1, -1).flatten(0, 2)
        codebook = self.codebook()
        distances = (flat**2).sum(1, keepdim=True) + (codebook**2).sum(1) - 2 * flat @ codebook.T
        indices = distances.argmin(1).view(latents.shape[0], *latents.shape[2:])
        codes = codebook[indices].movedim(-1, 1)
        losses = self._losses(latents, codes, distances) if self.training else None
        return Quantized(latents + (codes - latents).detach(), indices, losses)

    def codes_of(self, indices: Tensor) -> Tensor:
        """Decoder input (B, token_size, h, w) of token `indices` i64 (B, h, w)."""
        return self.codebook()[indices].movedim(-1, 1)

    def _losses(self, latents: Tensor, codes: Tensor, distances: Tensor) -> QuantizerLosses:
        config = self.config
        commitment = config.commitment_cost * F.mse_loss(latents, codes.detach())
        codebook = F.mse_loss(codes, latents.detach())
        per_sample = average = entropy = commitment.new_zeros(())
        if config.entropy_loss_weight != 0:
            probabilities = torch.softmax(-distances / config.entropy_loss_temperature, dim=-1)
            per_sample = _entropy(probabilities).mean()
            average = config.entropy_gamma * _entropy(probabilities.mean(0))
            entropy = config.entropy_loss_weight * (per_sample - average)
        return QuantizerLosses(
            commitment + codebook + entropy, commitment, codebook, entropy, per_sample, average
        )
