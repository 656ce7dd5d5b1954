"""The adversary of stage I: a discriminator, its losses, the adaptive weight and LeCam (SPEC section 4)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from training.losses.config import DiscriminatorConfig, TokenizerLossConfig
from training.losses.discriminators import build_discriminator

LECAM_DECAY = 0.999
MAX_ADAPTIVE_WEIGHT = 1e4


def generator_loss(kind: str, fake: Tensor) -> Tensor:
    """What the tokenizer minimises, given logits of its reconstructions; hinge and vanilla are the same."""
    return F.softplus(-fake).mean() if kind == "non-saturating" else -fake.mean()


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises, given its logits of pictures and of reconstructions."""
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    cross_entropies = F.softplus(-real).mean() + F.softplus(fake).mean()
    return cross_entropies if kind == "non-saturating" else 0.5 * cross_entropies


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of every process's `value`; its gradient is this process's own, which DDP averages."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return value + (total / dist.get_world_size() - value.detach())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Weight that makes the scalar `adversarial` pull at `last_layer` as strongly as `reconstruction`."""
    wanted, got = (
        torch.linalg.vector_norm(
            mean_over_processes(torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float())
        )
        for loss in (reconstruction, adversarial)
    )
    return torch.clamp(wanted / (got + 1e-4), max=MAX_ADAPTIVE_WEIGHT)


class Lecam(nn.Module):
    """LeCam regularisation (Tseng et al. 2021): mean logits stay near the running mean of the other side."""

    real: Tensor
    fake: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Penalty of the mean logits `real` and `fake` (scalars), which then enter the running means."""
        penalty = F.relu(real - self.fake).square() + F.relu(self.real - fake).square()
        with torch.no_grad():
            self.real.lerp_(real, 1 - LECAM_DECAY)
            self.fake.lerp_(fake, 1 - LECAM_DECAY)
        return penalty


@dataclass(frozen=True)
class DiscriminatorLoss:
    """Scalars of one batch: `total` to minimise, LeCam with its weight applied, and mean logits."""

    total: Tensor
    lecam: Tensor
    real_logits: Tensor
    fake_logits: Tensor

    def scalars(self) -> dict[str, Tensor]:
        """All of it by name for the log, without gradients; the total is `discriminator_loss`."""
        terms = {field.name: getattr(self, field.name).detach() for field in fields(self)}
        return {"discriminator_loss": terms.pop("total"), **terms}


class Adversary(nn.Module):
    """A discriminator with its losses. Called as a module it gives the discriminator's own loss.

    That call is the one to wrap in DDP: it passes real and fake pictures in one forward. The tokenizer's
    side, `judge`, goes to the bare module and leaves no gradient at the discriminator's weights.
    """

    def __init__(self, config: DiscriminatorConfig, losses: TokenizerLossConfig) -> None:
        super().__init__()
        self.losses = losses
        self.discriminator = build_discriminator(config)
        self.lecam = Lecam()

    def active(self, step: int) -> bool:
        """Whether discriminator and adversarial loss take part in 0-based `step`."""
        return step >= self.losses.discriminator_start and self.losses.discriminator_factor > 0

    def judge(self, reconstruction: Tensor) -> Tensor:
        """Adversarial loss of the tokenizer before its weights, for `reconstruction` f32 (B, 3, H, W)."""
        weights = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        logits = functional_call(self.discriminator, weights, (reconstruction,))
        return generator_loss(self.losses.discriminator_loss, logits.float())

    def weight(self, reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
        """Weight of the `adversarial` loss beside the weighted loss of the `reconstruction` (scalars)."""
        weight = adversarial.new_tensor(self.losses.discriminator_weight * self.losses.discriminator_factor)
        if self.losses.discriminator_gradient_penalty == "adopt_weight":
            weight = weight * adaptive_weight(reconstruction, adversarial, last_layer)
        return weight

    def forward(self, images: Tensor, reconstruction: Tensor) -> DiscriminatorLoss:
        """The discriminator's loss for `images` and their detached `reconstruction`, f32 (B, 3, H, W)."""
        real = self.discriminator(images).float()
        fake = self.discriminator(reconstruction.detach()).float()
        means = mean_over_processes(torch.stack([real.mean(), fake.mean()]))
        total = self.losses.discriminator_factor * discriminator_loss(
            self.losses.discriminator_loss, real, fake
        )
        lecam = self.losses.lecam_regularization_weight * self.lecam(means[0], means[1])
        return DiscriminatorLoss(total + lecam, lecam, means[0], means[1])
