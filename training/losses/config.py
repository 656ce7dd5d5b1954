"""The section `losses` of a recipe, and the discriminator of stage I, under the published names."""

from __future__ import annotations

from dataclasses import dataclass

from models.sampling_config import MASK_SCHEDULES
from models.validation import require, require_positive

PERCEPTUAL_LOSSES = ("none", "resnet50", "convnext_s", "lpips", "classifier")
DISCRIMINATOR_LOSSES = ("hinge", "vanilla", "non-saturating")
NORM_GROUPS = 32  # of the published discriminator
TOKEN_LOSSES = ("all", "masked", "weighted")


@dataclass(frozen=True)
class DiscriminatorConfig:
    """`VQGAN+Discriminator`, or `Original`: the PatchGAN of pix2pix.

    `blur_resample` and `blur_kernel_size` (taps along each side) concern the former.
    """

    name: str = "VQGAN+Discriminator"
    num_channels: int = 3
    num_stages: int = 4
    hidden_channels: int = 128
    blur_resample: bool = True
    blur_kernel_size: int = 4

    def __post_init__(self) -> None:
        require(
            self.name in ("VQGAN+Discriminator", "Original"),
            f"model.discriminator.name is {self.name!r}; allowed are 'VQGAN+Discriminator' and 'Original'",
        )
        require_positive(self, "num_channels", "num_stages", "hidden_channels", "blur_kernel_size")
        require(
            self.name == "Original" or self.hidden_channels % NORM_GROUPS == 0,
            f"model.discriminator.hidden_channels is {self.hidden_channels}; VQGAN+Discriminator needs a "
            f"multiple of {NORM_GROUPS}, its norm groups",
        )


@dataclass(frozen=True)
class TokenizerLossConfig:
    """Losses of stage I; the adversarial ones need `model.discriminator`.

    `perceptual_loss` is an ImageNet network of torchvision, LPIPS, or `classifier`: a network of one's own,
    trained by `maskbit train perceptual`. `perceptual_checkpoint` is its run folder or, for the others, a
    file of weights in place of torchvision's download; `perceptual_linear_checkpoint` holds the linear
    layers of LPIPS. `perceptual_loss_on_logits` false compares features too; of a `classifier` only those.
    `discriminator_penalty_cost` belongs to the published files and changes nothing, there as here.
    """

    quantizer_weight: float = 1.0
    perceptual_loss: str = "none"
    perceptual_weight: float = 0.1
    perceptual_loss_on_logits: bool = True
    perceptual_checkpoint: str = ""
    perceptual_linear_checkpoint: str = ""
    reconstruction_loss: str = "l2"
    reconstruction_weight: float = 4.0
    discriminator_start: int = 20_000
    discriminator_loss: str = "hinge"
    discriminator_factor: float = 1.0
    discriminator_weight: float = 0.02
    discriminator_gradient_penalty: str = "none"
    discriminator_penalty_cost: float = 10.0
    lecam_regularization_weight: float = 0.001
    entropy_annealing_steps: int = 2000
    entropy_annealing_factor: float = 2.0

    def __post_init__(self) -> None:
        choices = {
            "reconstruction_loss": ("l1", "l2"),
            "perceptual_loss": PERCEPTUAL_LOSSES,
            "discriminator_loss": DISCRIMINATOR_LOSSES,
            "discriminator_gradient_penalty": ("none", "adopt_weight"),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            require(value in allowed, f"losses.{name} is {value!r}; allowed are {', '.join(allowed)}")
        for name in (
            "quantizer_weight",
            "perceptual_weight",
            "reconstruction_weight",
            "discriminator_start",
            "discriminator_factor",
            "discriminator_weight",
            "lecam_regularization_weight",
            "entropy_annealing_steps",
            "entropy_annealing_factor",
        ):
            value = getattr(self, name)
            require(value >= 0, f"losses.{name} is {value}; it must be at least 0")


@dataclass(frozen=True)
class GeneratorLossConfig:
    """Masked-token loss of stage II: `losses.mlm` and what `model.mlm_model` says of training.

    `loss_on`: `all` groups as published, only `masked` ones, or `weighted`: unmasked groups count
    `unmasked_weight`. `sum_splits` makes it the loss of a token instead of the mean over its groups.
    """

    label_smoothing: float = 0.1
    sum_splits: bool = False
    loss_on: str = "all"
    unmasked_weight: float = 0.1
    class_label_dropout: float = 0.1
    train_mask_schedule_strategy: str = "arccos"

    def __post_init__(self) -> None:
        for key in ("losses.mlm.label_smoothing", "model.mlm_model.class_label_dropout"):
            share = getattr(self, key.rpartition(".")[2])
            require(0 <= share < 1, f"{key} is {share}; allowed are 0 up to, but not including, 1")
        schedule = self.train_mask_schedule_strategy
        require(
            schedule in MASK_SCHEDULES,
            f"model.mlm_model.train_mask_schedule_strategy is {schedule!r}; "
            f"allowed are {', '.join(MASK_SCHEDULES)}",
        )
        require(
            self.loss_on in TOKEN_LOSSES,
            f"losses.mlm.loss_on is {self.loss_on!r}; allowed are {', '.join(TOKEN_LOSSES)}",
        )
        require(
            0 <= self.unmasked_weight <= 1,
            f"losses.mlm.unmasked_weight is {self.unmasked_weight}; allowed are 0 to 1",
        )
