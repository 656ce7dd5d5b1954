import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from training.losses.adversary import Adversary, Lecam, adaptive_weight, discriminator_loss, generator_loss
from training.losses.config import DiscriminatorConfig, TokenizerLossConfig
from training.processes import PAUSE_S

SMALL = {
    "VQGAN+Discriminator": DiscriminatorConfig(hidden_channels=32, num_stages=1),
    "Original": DiscriminatorConfig(name="Original", hidden_channels=8, num_stages=2),
}
REAL, FAKE = torch.tensor([1.5, -0.5, 0.2]), torch.tensor([-2.0, 0.3, 0.9])


def adversary(name: str = "Original", **losses: Any) -> Adversary:
    torch.manual_seed(0)
    return Adversary(SMALL[name], TokenizerLossConfig(discriminator_start=10, **losses))


def pictures(seed: int, count: int = 4) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_hinge_losses_are_their_formulas() -> None:
    real = sum(max(0.0, 1 - x) for x in REAL.tolist()) / 3
    fake = sum(max(0.0, 1 + x) for x in FAKE.tolist()) / 3
    assert discriminator_loss("hinge", REAL, FAKE).item() == pytest.approx((real + fake) / 2)
    assert generator_loss("hinge", FAKE).item() == pytest.approx(0.8 / 3)


@pytest.mark.parametrize(("kind", "factor"), [("vanilla", 0.5), ("non-saturating", 1.0)])
def test_the_other_losses_are_cross_entropies_of_a_sigmoid(kind: str, factor: float) -> None:
    ones, zeros = torch.ones(3), torch.zeros(3)
    wanted = F.binary_cross_entropy_with_logits(REAL, ones) + F.binary_cross_entropy_with_logits(FAKE, zeros)
    assert discriminator_loss(kind, REAL, FAKE).item() == pytest.approx(factor * wanted.item(), rel=1e-6)
    saturating = generator_loss(kind, FAKE).item()
    if kind == "vanilla":
        assert saturating == pytest.approx(-FAKE.mean().item())
    else:
        assert saturating == pytest.approx(F.binary_cross_entropy_with_logits(FAKE, ones).item(), rel=1e-6)


def test_lecam_compares_with_the_other_sides_mean_before_it_is_updated() -> None:
    lecam = Lecam()
    real, fake = torch.tensor(0.6, requires_grad=True), torch.tensor(-0.4, requires_grad=True)
    penalty = lecam(real, fake)
    assert penalty.item() == pytest.approx(0.6**2 + 0.4**2)
    penalty.backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert [real.grad.item(), fake.grad.item()] == pytest.approx([1.2, -0.8])
    assert lecam.real.item() == pytest.approx(0.6 * 0.001)
    assert lecam.fake.item() == pytest.approx(-0.4 * 0.001)
    lecam.real.fill_(1.0)
    lecam.fake.fill_(0.5)
    assert lecam(torch.tensor(0.4), torch.tensor(1.5)).item() == 0
    assert lecam.real.item() == pytest.approx(0.999 + 0.4 * 0.001)


def test_the_state_of_an_adversary_holds_lecam_and_batch_norms() -> None:
    trained, other = adversary(), adversary()
    trained(pictures(0), pictures(1))
    assert trained.lecam.real != 0
    other.load_state_dict(trained.state_dict())
    assert trained(pictures(2), pictures(3)).total == other(pictures(2), pictures(3)).total


def test_the_adversary_starts_at_its_step_and_never_with_a_factor_of_zero() -> None:
    assert [adversary().active(step) for step in (0, 9, 10, 11)] == [False, False, True, True]
    assert not adversary(discriminator_factor=0.0).active(100)


@pytest.mark.parametrize("name", list(SMALL))
def test_judging_gives_the_picture_a_gradient_and_the_discriminator_none(name: str) -> None:
    network = adversary(name)
    fake = pictures(0).requires_grad_()
    network.judge(fake).backward()  # type: ignore[no-untyped-call]
    assert fake.grad is not None
    assert fake.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("name", list(SMALL))
def test_the_discriminators_loss_leaves_the_tokenizer_alone(name: str) -> None:
    network = adversary(name)
    fake = pictures(1).requires_grad_()
    network(pictures(0), fake).total.backward()
    assert fake.grad is None
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_factors_weigh_both_sides_and_lecam_has_its_own() -> None:
    plain = adversary(lecam_regularization_weight=0.0)
    weighed = adversary(discriminator_factor=3.0, lecam_regularization_weight=0.5)
    one, other = plain(pictures(0), pictures(1)), weighed(pictures(0), pictures(1))
    assert one.lecam == 0
    penalty = F.relu(one.real_logits).square() + F.relu(-one.fake_logits).square()
    assert other.lecam.item() == pytest.approx(0.5 * penalty.item(), rel=1e-5)
    assert other.total.item() == pytest.approx(3 * one.total.item() + other.lecam.item(), rel=1e-6)
    assert weighed.weight(torch.zeros(()), torch.zeros(()), torch.zeros(())).item() == pytest.approx(0.06)


def test_the_adaptive_weight_balances_the_gradients_at_the_last_layer() -> None:
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    wanted, adversarial = (3 * layer).sum(), (layer * torch.tensor([0.0, 0.5])).sum()
    ratio = math.sqrt(18) / (0.5 + 1e-4)
    assert adaptive_weight(wanted, adversarial, layer).item() == pytest.approx(ratio, rel=1e-6)
    assert adaptive_weight(1e9 * wanted, adversarial, layer).item() == 1e4
    network = adversary(discriminator_gradient_penalty="adopt_weight")
    assert network.weight(wanted, adversarial, layer).item() == pytest.approx(0.02 * ratio, rel=1e-6)


def two_updates(network: nn.Module, rank: int, world: int) -> dict[str, Tensor]:
    """Both sides of two updates for this rank's share of 4 pictures; the gradients of the second."""
    bare = network.module if isinstance(network, DistributedDataParallel) else network
    assert isinstance(bare, Adversary)
    for number in range(2):
        network.zero_grad()
        real, fake = pictures(10 + number).chunk(world)[rank], pictures(20 + number).chunk(world)[rank]
        fake = fake.clone().requires_grad_()
        bare.judge(fake).backward()  # type: ignore[no-untyped-call]
        network(real, fake).total.backward()
    gradients = {key: p.grad for key, p in bare.named_parameters() if p.grad is not None}
    return {**gradients, "lecam.real": bare.lecam.real, "lecam.fake": bare.lecam.fake}


def run_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    for name in SMALL:
        network = DistributedDataParallel(
            adversary(name, lecam_regularization_weight=1.0), broadcast_buffers=False
        )
        torch.save(two_updates(network, rank, world), f"{folder}/{name}-{rank}.pt")
        del network
    time.sleep(PAUSE_S)  # as at the end of a run
    dist.destroy_process_group()


def test_two_processes_update_a_discriminator_together(tmp_path: Path) -> None:
    """Each update has both sides in it, so that the batch norms of PatchGAN run three times."""
    spawn(run_rank, (2, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    for name in SMALL:
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2))
        for key, value in first.items():
            assert torch.equal(value, second[key]), key
        if name == "Original":
            continue  # the batch norms of each process see its own share of the pictures
        alone = two_updates(adversary(name, lecam_regularization_weight=1.0), 0, 1)
        for key, value in alone.items():
            assert torch.allclose(value, first[key], rtol=1e-4, atol=1e-7), key
