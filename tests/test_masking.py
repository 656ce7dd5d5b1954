import numpy as np
import pytest
import torch

from models.errors import InputError
from models.sampling_config import MASK_SCHEDULES
from models.schedule import mask_ratio
from training.losses.config import GeneratorLossConfig
from training.losses.masking import Masking, draw_masking, mask_ratios

CPU = torch.device("cpu")


def draw(shape: tuple[int, int, int], seed: int = 0, **settings: object) -> Masking:
    config = GeneratorLossConfig(**settings)  # type: ignore[arg-type]
    return draw_masking(shape, config, 1, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
def test_training_and_sampling_use_one_schedule(schedule: str) -> None:
    points = np.linspace(0.001, 0.999, 200, dtype=np.float32)
    expected = [float(mask_ratio(np.float32(point), schedule)) for point in points]
    assert mask_ratios(torch.from_numpy(points), schedule).tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
def test_ratios_lie_between_nothing_and_everything(schedule: str) -> None:
    ratios = mask_ratios(torch.tensor([0.0, 0.5, 1 - 2**-24]), schedule)
    assert ratios[0] == 1
    assert ((ratios >= 0) & (ratios <= 1)).all()


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(InputError, match="'sine' is unknown"):
        mask_ratios(torch.rand(3), "sine")


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
def test_the_share_of_masked_groups_is_distributed_as_the_schedule_of_a_uniform(schedule: str) -> None:
    shares = draw((4000, 64, 4), train_mask_schedule_strategy=schedule).groups.float().mean((1, 2)).numpy()
    points = (np.arange(100_000, dtype=np.float32) + 0.5) / 100_000
    ratios = np.array([mask_ratio(point, schedule) for point in points[::50]])
    # mean of 4000 values, each with a standard deviation below 0.32
    assert shares.mean() == pytest.approx(ratios.mean(), abs=5 * 0.32 / 4000**0.5)
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert np.quantile(shares, quantile) == pytest.approx(np.quantile(ratios, quantile), abs=0.04)


def test_groups_are_masked_independently_at_the_ratio_of_their_picture() -> None:
    masks = draw((500, 256, 2), seed=1).groups.float()
    first, second = masks[..., 0], masks[..., 1]
    centred = (first - first.mean(1, keepdim=True)) * (second - second.mean(1, keepdim=True))
    assert abs(centred.mean().item()) < 0.005  # the groups of one token are masked apart
    assert masks.mean((1, 2)).std() > 0.2  # ratios differ between pictures
    halves = (masks[:, :128].mean((1, 2)) - masks[:, 128:].mean((1, 2))).abs()
    assert halves.max() < 0.25  # and are one within a picture


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_classes_are_hidden_with_the_wanted_share(share: float) -> None:
    hidden = draw((10_000, 1, 1), class_label_dropout=share).classes
    assert hidden.shape == (10_000,)
    assert hidden.float().mean().item() == pytest.approx(share, abs=5 * (share * (1 - share)) ** 0.5 / 100)


def test_the_same_generator_state_draws_the_same_masking() -> None:
    first, again, other = draw((8, 4, 2), 3), draw((8, 4, 2), 3), draw((8, 4, 2), 4)
    assert torch.equal(first.groups, again.groups)
    assert torch.equal(first.classes, again.classes)
    assert not torch.equal(first.groups, other.groups)


def test_rows_are_a_processs_share_of_the_whole_step() -> None:
    whole = draw((8, 4, 2), loss_on="weighted")
    shares = [whole.rows(start, 2, CPU) for start in range(0, 8, 2)]
    for name in ("groups", "classes", "weights"):
        joined = torch.cat([getattr(share, name) for share in shares])
        assert torch.equal(joined, getattr(whole, name)), name
