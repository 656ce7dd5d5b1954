import numpy as np
import pytest
import torch

from models.config import MASK_SCHEDULES
from models.errors import InputError
from models.schedule import mask_ratio
from training.masking import drop_classes, mask_ratios, random_masks

CPU = torch.device("cpu")


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
    torch.manual_seed(0)
    shares = random_masks((4000, 64, 4), schedule, CPU).float().mean((1, 2)).numpy()
    points = (np.arange(100_000, dtype=np.float32) + 0.5) / 100_000
    ratios = np.array([mask_ratio(point, schedule) for point in points[::50]])
    # mean of 4000 values, each with a standard deviation below 0.32
    assert shares.mean() == pytest.approx(ratios.mean(), abs=5 * 0.32 / 4000**0.5)
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert np.quantile(shares, quantile) == pytest.approx(np.quantile(ratios, quantile), abs=0.04)


def test_groups_are_masked_independently_at_the_ratio_of_their_picture() -> None:
    torch.manual_seed(1)
    masks = random_masks((500, 256, 2), "arccos", CPU).float()
    first, second = masks[..., 0], masks[..., 1]
    centred = (first - first.mean(1, keepdim=True)) * (second - second.mean(1, keepdim=True))
    assert abs(centred.mean().item()) < 0.005  # the groups of one token are masked apart
    assert masks.mean((1, 2)).std() > 0.2  # ratios differ between pictures
    halves = (masks[:, :128].mean((1, 2)) - masks[:, 128:].mean((1, 2))).abs()
    assert halves.max() < 0.25  # and are one within a picture


def test_dropped_classes_are_a_copy_with_the_wanted_share() -> None:
    torch.manual_seed(2)
    labels = torch.arange(10).repeat(1000)
    before = labels.clone()
    dropped = drop_classes(labels, 0.1, 10)
    assert torch.equal(labels, before)
    missing = dropped == 10
    assert missing.float().mean().item() == pytest.approx(0.1, abs=0.015)
    assert torch.equal(dropped[~missing], labels[~missing])


def test_no_class_is_dropped_at_probability_zero() -> None:
    labels = torch.arange(50)
    assert torch.equal(drop_classes(labels, 0.0, 99), labels)
