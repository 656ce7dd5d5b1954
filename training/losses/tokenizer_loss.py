"""The loss of stage I (SPEC section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch.nn.functional as F
from torch import Tensor

from models.quantizer import QuantizerLosses
from training.losses.adversary import Adversary
from training.losses.config import TokenizerLossConfig
from training.recipe import TokenizerRecipe

Perceptual = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TokenizerLoss:
    """Scalars of one batch: `total` to minimise, and its terms before their weights; 0 where one is off.

    The terms of the quantizer carry the weights of its own configuration.
    """

    total: Tensor
    reconstruction: Tensor
    perceptual: Tensor
    commitment: Tensor
    codebook: Tensor
    entropy: Tensor
    per_sample_entropy: Tensor
    average_entropy: Tensor
    adversarial: Tensor
    adversarial_weight: Tensor

    def scalars(self) -> dict[str, Tensor]:
        """All terms by name for the log, without gradients; the total is `loss`."""
        terms = {field.name: getattr(self, field.name).detach() for field in fields(self)}
        return {"loss": terms.pop("total"), **terms}


def entropy_annealing(step: int, recipe: TokenizerRecipe) -> float:
    """Factor of the extra entropy loss at 0-based `step`: falls linearly to 0; lookup-free only."""
    steps = recipe.losses.entropy_annealing_steps
    if step >= steps or recipe.model.quantizer_type != "lookup-free":
        return 0.0
    return recipe.losses.entropy_annealing_factor * (1 - step / steps)


def tokenizer_loss(
    images: Tensor,
    reconstruction: Tensor,
    quantizer: QuantizerLosses | None,
    config: TokenizerLossConfig,
    *,
    annealing: float,
    perceptual: Perceptual | None,
    adversary: Adversary | None,
    last_layer: Tensor,
) -> TokenizerLoss:
    """The tokenizer's side of the loss for `images` and their `reconstruction`, f32 (B, 3, H, W).

    `quantizer` is None where only the decoder is trained. `annealing` multiplies the extra entropy loss.
    `perceptual` gives a distance (B,) of pictures. `adversary` is the bare module, None before its start.
    `last_layer` is the decoder's last weight, at which the adaptive weight is measured.
    """
    reconstruction = reconstruction.float()
    distance = F.mse_loss if config.reconstruction_loss == "l2" else F.l1_loss
    error = distance(reconstruction, images)
    zero = error.new_zeros(())
    likeness = zero if perceptual is None else perceptual(images, reconstruction).float().mean()
    total = pixels = config.reconstruction_weight * error + config.perceptual_weight * likeness
    adversarial = weight = zero
    if adversary is not None:
        adversarial = adversary.judge(reconstruction)
        weight = adversary.weight(pixels, adversarial, last_layer)
        total = total + weight * adversarial
    if quantizer is not None:
        total = total + config.quantizer_weight * (quantizer.total + annealing * quantizer.entropy)
    return TokenizerLoss(
        total=total,
        reconstruction=error,
        perceptual=likeness,
        commitment=zero if quantizer is None else quantizer.commitment,
        codebook=zero if quantizer is None else quantizer.codebook,
        entropy=zero if quantizer is None else quantizer.entropy,
        per_sample_entropy=zero if quantizer is None else quantizer.per_sample_entropy,
        average_entropy=zero if quantizer is None else quantizer.average_entropy,
        adversarial=adversarial,
        adversarial_weight=weight,
    )
