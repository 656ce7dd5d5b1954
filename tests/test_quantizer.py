import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import TokenizerConfig
from models.quantizer import LookupFreeQuantizer, LookupQuantizer

CLAMP = 1e-5
BITS = [1, 2, 5, 8, 12]
# Standard deviations of latents, from undecided to decided bits at temperature 0.01. In between, at 0.01, the
# clamp inside the logarithm changes the per-sample entropy most.
WIDTHS = [1e-4, 0.002, 0.01, 0.02, 1.0]


def lookup_free(bits: int, **changes: Any) -> LookupFreeQuantizer:
    return LookupFreeQuantizer(TokenizerConfig(token_size=bits, **changes))


def lookup(codes: list[list[float]], **changes: Any) -> LookupQuantizer:
    config = TokenizerConfig(
        quantizer_type="lookup", codebook_size=len(codes), token_size=len(codes[0]), **changes
    )
    quantizer = LookupQuantizer(config)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor(codes))
    return quantizer


def random_latents(bits: int, width: float) -> Tensor:
    generator = torch.Generator().manual_seed(bits)
    latents = width * torch.randn(96, bits, generator=generator, dtype=torch.float64)
    return latents.requires_grad_()


def dense_entropies(latents: Tensor) -> tuple[Tensor, Tensor]:
    """The published formula: a softmax over all 2^K codes, at temperature 0.01."""
    bits = latents.shape[1]
    codes = torch.tensor([[index >> k & 1 for k in range(bits)] for index in range(2**bits)])
    p = torch.softmax(2 * latents @ (2.0 * codes - 1).to(latents.dtype).T / 0.01, dim=-1)
    mean = p.mean(0)
    per_sample = -(p * p.clamp_min(CLAMP).log()).sum(-1).mean()
    return per_sample, -(mean * mean.clamp_min(CLAMP).log()).sum()


def assert_same(got: Tensor, wanted: Tensor, latents: Tensor, relative: float) -> None:
    """Values and gradients of two scalars agree."""
    assert got.item() == pytest.approx(wanted.item(), rel=relative)
    (got_gradient,) = torch.autograd.grad(got, latents, retain_graph=True)
    (wanted_gradient,) = torch.autograd.grad(wanted, latents, retain_graph=True)
    scale = wanted_gradient.abs().max().item()
    assert (got_gradient - wanted_gradient).abs().max().item() <= relative * scale


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_factored_entropies_are_the_dense_ones(bits: int, width: float) -> None:
    latents = random_latents(bits, width)
    for got, wanted in zip(
        LookupFreeQuantizer.entropies(latents, 0.01), dense_entropies(latents), strict=True
    ):
        assert_same(got, wanted, latents, relative=1e-9)


@pytest.mark.parametrize("width", WIDTHS)
def test_entropies_of_single_precision_latents_are_the_dense_ones(width: float) -> None:
    latents = random_latents(12, width).detach().float().requires_grad_()
    exact = latents.detach().double().requires_grad_()
    for got, wanted in zip(LookupFreeQuantizer.entropies(latents, 0.01), dense_entropies(exact), strict=True):
        assert got.dtype == torch.float32
        assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
        (got_gradient,) = torch.autograd.grad(got, latents, retain_graph=True)
        (wanted_gradient,) = torch.autograd.grad(wanted, exact, retain_graph=True)
        error = (got_gradient - wanted_gradient).abs().max()
        assert error <= 1e-6 * wanted_gradient.abs().max()


def test_entropies_do_not_lose_precision_under_autocast() -> None:
    latents = random_latents(12, 0.02).detach().float()
    exact = LookupFreeQuantizer.entropies(latents, 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert LookupFreeQuantizer.entropies(latents, 0.01) == exact


def test_bits_are_signs_and_zero_is_bit_zero() -> None:
    latents = torch.tensor([-2.0, -0.0, 0.0, 1e-30, 3.0])[None, :, None, None]
    quantized = lookup_free(5)(latents)
    assert quantized.codes.flatten().tolist() == [-1.0, -1.0, -1.0, 1.0, 1.0]
    assert quantized.indices.tolist() == [[[0b11000]]]


def test_channel_zero_is_the_lowest_bit_and_codes_lead_back() -> None:
    quantizer = lookup_free(10)
    indices = torch.arange(1024).view(4, 16, 16)
    codes = quantizer.codes_of(indices)
    assert codes[0, :, 0, 1].tolist() == [1.0] + [-1.0] * 9
    assert torch.equal(quantizer(codes * 0.3).indices, indices)


@pytest.mark.parametrize("quantizer", [lookup_free(3), lookup([[0.1, 0.2, 0.3], [-1.0, 1.0, 2.0]])])
def test_the_gradient_goes_straight_through(quantizer: LookupFreeQuantizer | LookupQuantizer) -> None:
    latents = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    upstream = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    codes = quantizer(latents).codes
    assert torch.allclose(codes, quantizer.codes_of(quantizer(latents).indices), atol=1e-6)
    (codes * upstream).sum().backward()
    assert latents.grad is not None
    assert torch.equal(latents.grad, upstream)


def test_lookup_free_losses_add_up_with_their_weights() -> None:
    latents = torch.tensor([0.5, -0.25]).view(1, 2, 1, 1)
    quantizer = lookup_free(2, commitment_cost=0.5, entropy_loss_weight=0.1, entropy_gamma=3.0)
    losses = quantizer.train()(latents).losses
    assert losses is not None
    assert losses.commitment.item() == pytest.approx(0.5 * (0.5**2 + 0.75**2) / 2)
    assert losses.average_entropy.item() == pytest.approx(3 * losses.per_sample_entropy.item(), abs=1e-6)
    assert losses.codebook.item() == 0
    total = losses.commitment + 0.1 * (losses.per_sample_entropy - losses.average_entropy)
    assert losses.total.item() == pytest.approx(total.item())


def test_entropies_of_even_and_of_decided_bits_are_known() -> None:
    even = torch.zeros(4, 6, dtype=torch.float64)
    assert [value.item() for value in LookupFreeQuantizer.entropies(even, 0.01)] == pytest.approx(
        [6 * math.log(2)] * 2
    )
    all_codes = lookup_free(6).codes_of(torch.arange(64).view(1, 8, 8)).double().flatten(2)[0].T
    per_sample, average = LookupFreeQuantizer.entropies(all_codes, 0.01)
    assert per_sample.item() == pytest.approx(0, abs=1e-12)
    assert average.item() == pytest.approx(6 * math.log(2))


@pytest.mark.parametrize("weight", [0.0, 0.02])
def test_losses_exist_in_training_mode_only(weight: float) -> None:
    quantizer = lookup_free(4, entropy_loss_weight=weight)
    latents = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    assert quantizer.eval()(latents).losses is None
    losses = quantizer.train()(latents).losses
    assert losses is not None
    assert bool(losses.entropy == 0) == (weight == 0)


PUBLISHED_BATCH_OF_EIGHTEEN_BITS = """
import resource
import torch
from models.config import TokenizerConfig
from models.quantizer import LookupFreeQuantizer

def train(bits, images):
    latents = torch.randn(images, bits, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    LookupFreeQuantizer(TokenizerConfig(token_size=bits)).train()(latents).losses.total.backward()
    assert torch.isfinite(latents.grad).all() and latents.grad.abs().max() > 0

train(4, 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
train(18, 16)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_eighteen_bits_of_a_published_batch_take_less_than_two_gigabytes() -> None:
    """A softmax over all codes would take 16 x 256 tokens x 2^18 codes x 4 bytes = 4 GiB, several times."""
    run = subprocess.run(
        [sys.executable, "-c", PUBLISHED_BATCH_OF_EIGHTEEN_BITS], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 2e9 / 1024


def test_lookup_takes_the_nearest_code_and_weighs_its_losses() -> None:
    quantizer = lookup([[0.0, 0.0], [1.0, 1.0], [-2.0, 0.0]], entropy_loss_weight=0.0).train()
    latents = torch.tensor([[0.4, 0.9], [-1.5, 0.2]]).T.view(1, 2, 1, 2).requires_grad_()
    quantized = quantizer(latents)
    assert quantized.indices.tolist() == [[[1, 2]]]
    assert quantized.losses is not None
    error = (0.6**2 + 0.1**2 + 0.5**2 + 0.2**2) / 4
    assert quantized.losses.codebook.item() == pytest.approx(error)
    assert quantized.losses.commitment.item() == pytest.approx(0.25 * error)
    # The commitment pulls latents only, the codebook loss pulls codes only.
    (pull,) = torch.autograd.grad(quantized.losses.commitment, latents, retain_graph=True)
    assert pull.abs().min() > 0
    (pull,) = torch.autograd.grad(quantized.losses.codebook, quantizer.embedding.weight)
    assert pull[0].tolist() == [0.0, 0.0]
    assert pull[1:].abs().min() > 0


def test_with_l2_normalisation_only_directions_count() -> None:
    quantizer = lookup([[5.0, 0.0], [0.1, 0.1]], use_l2_normalisation=True)
    quantized = quantizer(torch.tensor([3.0, 2.5]).view(1, 2, 1, 1))
    assert quantized.indices.item() == 1
    assert torch.allclose(quantized.codes.flatten(), F.normalize(torch.ones(2), dim=0))
