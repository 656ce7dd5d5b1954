from pathlib import Path

import numpy as np
import pytest
import torch

from models.config import TokenizerConfig
from models.quantizer import LookupFreeQuantizer, LookupQuantizer, QuantizerLosses
from tests.training_fixtures import recipe_values
from training.config import TokenizerLossConfig, TokenizerRecipe
from training.losses import entropy_annealing, token_loss, tokenizer_loss
from training.recipes import build_recipe

GOLDEN = Path(__file__).parent / "golden"


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value)


QUANTIZER = QuantizerLosses(*(scalar(v) for v in (0.7, 0.1, 0.2, 0.4, 1.0, 0.6)))


def tokenizer_recipe(**model: object) -> TokenizerRecipe:
    values = recipe_values("tokenizer", Path("shards"), Path("runs"), losses__entropy_annealing_steps=100)
    values["model"]["vq_model"] |= model
    recipe = build_recipe("tokenizer", values)
    assert isinstance(recipe, TokenizerRecipe)
    return recipe


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_tokenizer_loss_is_the_weighted_sum_of_its_terms(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images, rebuilt = torch.rand(2, 3, 4, 4, generator=generator), torch.rand(2, 3, 4, 4, generator=generator)
    config = TokenizerLossConfig(reconstruction_loss=kind, reconstruction_weight=4.0, quantizer_weight=0.5)
    difference = (images.numpy() - rebuilt.numpy()).astype(np.float64)
    error = np.abs(difference).mean() if kind == "l1" else (difference**2).mean()
    loss = tokenizer_loss(images, rebuilt, QUANTIZER, 1.5, config)
    assert loss.reconstruction.item() == pytest.approx(error, rel=1e-6)
    assert loss.total.item() == pytest.approx(4 * error + 0.5 * 0.7 + 1.5 * 0.4, rel=1e-6)


def test_entropy_annealing_falls_linearly_to_zero() -> None:
    recipe = tokenizer_recipe()
    assert [entropy_annealing(step, recipe) for step in (0, 25, 50, 99, 100, 500)] == pytest.approx(
        [2.0, 1.5, 1.0, 0.02, 0.0, 0.0]
    )


def test_entropy_annealing_is_for_lookup_free_quantizers_only() -> None:
    assert entropy_annealing(0, tokenizer_recipe(quantizer_type="lookup", codebook_size=16)) == 0.0


@pytest.mark.parametrize("sum_splits", [False, True])
def test_the_token_loss_gives_the_reference_numbers(sum_splits: bool) -> None:
    golden = np.load(GOLDEN / f"mlm_loss_sum{int(sum_splits)}.npz")
    logits, targets, masks = (torch.from_numpy(golden[key]) for key in ("logits", "targets", "masks"))
    loss = token_loss(logits, targets, masks, 0.1, sum_splits)
    assert loss.total.item() == pytest.approx(float(golden["loss"]), rel=1e-5)
    assert loss.masked.item() == pytest.approx(float(golden["masked_token_loss"]), rel=1e-5)
    assert loss.accuracy.item() == pytest.approx(float(golden["correct_tokens"]), rel=1e-5)
    assert loss.masked_accuracy.item() == pytest.approx(float(golden["masked_correct_tokens"]), rel=1e-5)


def dense_token_loss(logits: np.ndarray, targets: np.ndarray, smoothing: float) -> np.ndarray:
    """Cross entropy of every group against its smoothed one-hot target, written out."""
    values = logits.shape[-1]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = np.full(logits.shape, smoothing / values)
    np.put_along_axis(wanted, targets[..., None], 1 - smoothing + smoothing / values, -1)
    dense: np.ndarray = -(wanted * log_p).sum(-1)
    return dense


def test_the_token_loss_equals_a_dense_computation() -> None:
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=(2, 5, 3, 7)), rng.integers(0, 7, (2, 5, 3))
    masks = rng.random((2, 5, 3)) < 0.5
    each = dense_token_loss(logits, targets, 0.2)
    right = logits.argmax(-1) == targets
    loss = token_loss(torch.from_numpy(logits), torch.from_numpy(targets), torch.from_numpy(masks), 0.2, True)
    assert loss.total.item() == pytest.approx(3 * each.mean(), rel=1e-9)
    assert loss.masked.item() == pytest.approx(3 * each[masks].mean(), rel=1e-9)
    assert loss.accuracy.item() == pytest.approx(right.mean() ** 3, rel=1e-6)
    assert loss.masked_accuracy.item() == pytest.approx(right[masks].mean() ** 3, rel=1e-6)


def test_a_batch_without_masked_groups_reports_zero_and_stays_finite() -> None:
    logits, targets = torch.randn(1, 4, 2, 3), torch.zeros(1, 4, 2, dtype=torch.long)
    loss = token_loss(logits, targets, torch.zeros(1, 4, 2, dtype=torch.bool), 0.0, False)
    assert loss.masked.item() == 0
    assert torch.isfinite(loss.total)


def test_unmasked_groups_are_learned_too() -> None:
    logits = torch.zeros(1, 4, 2, 3, requires_grad=True)
    targets = torch.zeros(1, 4, 2, dtype=torch.long)
    masks = torch.tensor([[[True, False]] * 4])
    token_loss(logits, targets, masks, 0.0, False).total.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.equal(logits.grad[:, :, 0], logits.grad[:, :, 1])


def small(**changes: object) -> TokenizerConfig:
    settings: dict[str, object] = {
        "hidden_channels": 32,
        "token_size": 5,
        "entropy_loss_weight": 0.02,
        **changes,
    }
    return TokenizerConfig(**settings)  # type: ignore[arg-type]


def test_lookup_free_losses_equal_the_dense_softmax_over_all_codes() -> None:
    config = small(commitment_cost=0.25, entropy_loss_temperature=0.5, entropy_gamma=0.9)
    latents = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 0.3
    losses = LookupFreeQuantizer(config).train()(latents.float()).losses

    z = latents.permute(0, 2, 3, 1).reshape(-1, 5).numpy()
    codes = np.array([[1 if index >> bit & 1 else -1 for bit in range(5)] for index in range(32)])
    affinity = 2 * z @ codes.T / 0.5
    p = np.exp(affinity - affinity.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    per_sample = -(p * np.log(p.clip(1e-5))).sum(1).mean()
    average = -0.9 * (p.mean(0) * np.log(p.mean(0).clip(1e-5))).sum()
    commitment = 0.25 * ((np.where(z > 0, 1, -1) - z) ** 2).mean()
    assert losses is not None
    assert losses.per_sample_entropy.item() == pytest.approx(per_sample, rel=1e-3)  # no clamp inside the bits
    assert losses.average_entropy.item() == pytest.approx(average, rel=1e-5)
    assert losses.commitment.item() == pytest.approx(commitment, rel=1e-5)
    assert losses.total.item() == pytest.approx(commitment + 0.02 * (per_sample - average), rel=1e-3)


def test_lookup_losses_equal_a_dense_computation() -> None:
    config = small(quantizer_type="lookup", codebook_size=8, commitment_cost=0.25, entropy_loss_weight=0.0)
    quantizer = LookupQuantizer(config).train()
    latents = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(3))
    losses = quantizer(latents).losses
    z = latents.permute(0, 2, 3, 1).reshape(-1, 5).numpy()
    table = quantizer.embedding.weight.detach().numpy()
    nearest = table[((z[:, None] - table) ** 2).sum(-1).argmin(1)]
    error = ((z - nearest) ** 2).mean()
    assert losses is not None
    assert losses.commitment.item() == pytest.approx(0.25 * error, rel=1e-5)
    assert losses.codebook.item() == pytest.approx(error, rel=1e-5)
    assert losses.total.item() == pytest.approx(1.25 * error, rel=1e-5)
