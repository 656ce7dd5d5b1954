from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.quantizer import QuantizerLosses
from tests.training_fixtures import recipe_values
from training.losses.adversary import Adversary
from training.losses.config import DiscriminatorConfig, TokenizerLossConfig
from training.losses.tokenizer_loss import TokenizerLoss, entropy_annealing, tokenizer_loss
from training.recipe import TokenizerRecipe
from training.recipe_file import build_recipe

QUANTIZER = QuantizerLosses(*map(torch.tensor, (0.7, 0.1, 0.2, 0.4, 1.0, 0.6)))
IMAGES, REBUILT = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def tokenizer_recipe(**model: object) -> TokenizerRecipe:
    values = recipe_values("tokenizer", Path("shards"), Path("runs"), losses__entropy_annealing_steps=100)
    values["model"]["vq_model"] |= model
    recipe = build_recipe("tokenizer", values)
    assert isinstance(recipe, TokenizerRecipe)
    return recipe


def loss_of(config: TokenizerLossConfig, reconstruction: Tensor = REBUILT, **parts: Any) -> TokenizerLoss:
    given = {"annealing": 0.0, "perceptual": None, "adversary": None, "last_layer": reconstruction, **parts}
    quantizer = given.pop("quantizer", QUANTIZER)
    return tokenizer_loss(IMAGES, reconstruction, quantizer, config, **given)


def distance(images: Tensor, others: Tensor) -> Tensor:
    return (images - others).abs().amax((1, 2, 3))


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_tokenizer_loss_is_the_weighted_sum_of_its_terms(kind: str) -> None:
    config = TokenizerLossConfig(
        reconstruction_loss=kind, reconstruction_weight=4.0, quantizer_weight=0.5, perceptual_weight=0.3
    )
    difference = np.abs(IMAGES.numpy().astype(np.float64) - REBUILT.numpy())
    error = difference.mean() if kind == "l1" else (difference**2).mean()
    likeness = difference.max((1, 2, 3)).mean()
    loss = loss_of(config, annealing=1.5, perceptual=distance)
    assert loss.reconstruction.item() == pytest.approx(error, rel=1e-6)
    assert loss.perceptual.item() == pytest.approx(likeness, rel=1e-6)
    assert loss.total.item() == pytest.approx(4 * error + 0.3 * likeness + 0.5 * (0.7 + 1.5 * 0.4), rel=1e-6)
    assert {key: value.item() for key, value in loss.scalars().items() if value != 0} == pytest.approx(
        {
            "loss": loss.total.item(),
            "reconstruction": error,
            "perceptual": likeness,
            "commitment": 0.1,
            "codebook": 0.2,
            "entropy": 0.4,
            "per_sample_entropy": 1.0,
            "average_entropy": 0.6,
        },
        rel=1e-6,
    )


@pytest.mark.parametrize("penalty", ["none", "adopt_weight"])
def test_the_adversary_adds_its_weighted_judgement(penalty: str) -> None:
    config = TokenizerLossConfig(discriminator_weight=0.5, discriminator_gradient_penalty=penalty)
    adversary = Adversary(
        DiscriminatorConfig(name="Original", hidden_channels=8, num_stages=2), config
    ).eval()
    rebuilt = REBUILT.clone().requires_grad_()
    without, loss = loss_of(config, rebuilt), loss_of(config, rebuilt, adversary=adversary)
    (pixels,) = torch.autograd.grad(4 * (IMAGES - rebuilt).square().mean(), rebuilt)
    (judged,) = torch.autograd.grad(adversary.judge(rebuilt), rebuilt)
    factor = 1.0 if penalty == "none" else (pixels.norm() / (judged.norm() + 1e-4)).item()
    assert loss.adversarial_weight.item() == pytest.approx(0.5 * factor, rel=1e-5)
    added = loss.adversarial_weight * loss.adversarial
    assert loss.total.item() == pytest.approx((without.total + added).item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss.total, rebuilt)
    assert torch.allclose(gradient, pixels + 0.5 * factor * judged, atol=1e-7)


def test_without_a_quantizer_only_pictures_are_compared() -> None:
    loss = loss_of(TokenizerLossConfig(), quantizer=None, annealing=2.0)
    assert loss.total == 4 * loss.reconstruction
    assert loss.entropy == loss.commitment == 0


def test_errors_of_half_precision_pictures_are_taken_in_single_precision() -> None:
    rebuilt = REBUILT.bfloat16()
    exact = (rebuilt.double() - IMAGES).square().mean().item()
    assert loss_of(TokenizerLossConfig(), rebuilt).reconstruction.item() == pytest.approx(exact, rel=1e-6)


def test_entropy_annealing_falls_linearly_to_zero() -> None:
    recipe = tokenizer_recipe()
    assert [entropy_annealing(step, recipe) for step in (0, 25, 50, 99, 100, 500)] == pytest.approx(
        [2.0, 1.5, 1.0, 0.02, 0.0, 0.0]
    )


def test_entropy_annealing_is_for_lookup_free_quantizers_only() -> None:
    assert entropy_annealing(0, tokenizer_recipe(quantizer_type="lookup", codebook_size=16)) == 0.0
