from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.losses.config import TOKEN_LOSSES
from training.losses.token_loss import group_weights, token_loss

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("sum_splits", [False, True])
def test_the_token_loss_gives_the_reference_numbers(sum_splits: bool) -> None:
    golden = np.load(GOLDEN / f"mlm_loss_sum{int(sum_splits)}.npz")
    logits, targets, masks = (torch.from_numpy(golden[key]) for key in ("logits", "targets", "masks"))
    weights = group_weights(masks, "all", 0.1, 1)
    loss = token_loss(logits, targets, masks, weights, 0.1, sum_splits)
    assert loss.total.item() == pytest.approx(float(golden["loss"]), rel=1e-5)
    assert loss.masked.item() == pytest.approx(float(golden["masked_token_loss"]), rel=1e-5)
    assert loss.accuracy.item() == pytest.approx(float(golden["correct_tokens"]), rel=1e-5)
    assert loss.masked_accuracy.item() == pytest.approx(float(golden["masked_correct_tokens"]), rel=1e-5)


def example() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and masks of 4 pictures of 5 tokens in 3 groups of 7 codes."""
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=(4, 5, 3, 7)), rng.integers(0, 7, (4, 5, 3))
    return torch.from_numpy(logits), torch.from_numpy(targets), torch.from_numpy(rng.random((4, 5, 3)) < 0.5)


def dense(logits: Tensor, targets: Tensor, smoothing: float) -> NDArray[np.float64]:
    """Cross entropy of every group against its smoothed one-hot target, written out."""
    log_p = logits.numpy() - np.log(np.exp(logits.numpy()).sum(-1, keepdims=True))
    wanted = np.full(log_p.shape, smoothing / log_p.shape[-1])
    np.put_along_axis(wanted, targets.numpy()[..., None], 1 - smoothing + smoothing / log_p.shape[-1], -1)
    each: NDArray[np.float64] = -(wanted * log_p).sum(-1)
    return each


@pytest.mark.parametrize("loss_on", TOKEN_LOSSES)
def test_each_kind_of_loss_is_a_weighted_mean_over_groups(loss_on: str) -> None:
    logits, targets, masks = example()
    each, masked = dense(logits, targets, 0.2), masks.numpy()
    loss = token_loss(logits, targets, masks, group_weights(masks, loss_on, 0.3, 1), 0.2, False)
    expected = {
        "all": each.mean(),
        "masked": each[masked].mean(),
        "weighted": np.average(each, weights=np.where(masked, 1, 0.3)),
    }
    assert loss.total.item() == pytest.approx(expected[loss_on], rel=1e-6)


def test_sum_splits_gives_the_loss_of_a_token() -> None:
    logits, targets, masks = example()
    each, masked = dense(logits, targets, 0.2), masks.numpy()
    right = logits.argmax(-1).eq(targets).numpy()
    loss = token_loss(logits, targets, masks, group_weights(masks, "all", 0.1, 1), 0.2, True)
    assert loss.total.item() == pytest.approx(each.sum(-1).mean(), rel=1e-6)
    assert loss.masked.item() == pytest.approx(3 * each[masked].mean(), rel=1e-9)
    assert loss.accuracy.item() == pytest.approx(right.mean() ** 3, rel=1e-6)
    assert loss.masked_accuracy.item() == pytest.approx(right[masked].mean() ** 3, rel=1e-6)


@pytest.mark.parametrize("loss_on", TOKEN_LOSSES)
@pytest.mark.parametrize("batches", [2, 4])
def test_the_mean_of_the_parts_losses_is_the_loss_of_the_whole(loss_on: str, batches: int) -> None:
    logits, targets, masks = example()
    masks[0] = False  # parts differ in their share of masked groups
    whole = token_loss(logits, targets, masks, group_weights(masks, loss_on, 0.3, 1), 0.1, False).total
    weights = group_weights(masks, loss_on, 0.3, batches)
    rows = torch.arange(4).chunk(batches)
    parts = [token_loss(logits[r], targets[r], masks[r], weights[r], 0.1, False).total for r in rows]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("loss_on", TOKEN_LOSSES)
def test_a_batch_without_masked_groups_stays_finite(loss_on: str) -> None:
    logits, targets = torch.randn(1, 4, 2, 3), torch.zeros(1, 4, 2, dtype=torch.long)
    masks = torch.zeros(1, 4, 2, dtype=torch.bool)
    loss = token_loss(logits, targets, masks, group_weights(masks, loss_on, 0.1, 1), 0.0, False)
    assert (loss.masked.item(), loss.masked_accuracy.item()) == (0, 0)
    assert torch.isfinite(loss.total)


@pytest.mark.parametrize(("loss_on", "share"), [("all", 1.0), ("masked", 0.0), ("weighted", 0.25)])
def test_unmasked_groups_pull_as_strongly_as_they_count(loss_on: str, share: float) -> None:
    logits = torch.zeros(1, 4, 2, 3, requires_grad=True)
    targets = torch.zeros(1, 4, 2, dtype=torch.long)
    masks = torch.tensor([[[True, False]] * 4])
    weights = group_weights(masks, loss_on, 0.25, 1)
    token_loss(logits, targets, masks, weights, 0.0, False).total.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.allclose(logits.grad[:, :, 1], share * logits.grad[:, :, 0])
