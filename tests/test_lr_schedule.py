from pathlib import Path

import numpy as np
import pytest

from training.lr_schedule import cosine_with_minimum

GOLDEN = Path(__file__).parent / "golden"


def test_the_learning_rate_follows_the_reference() -> None:
    golden = np.load(GOLDEN / "schedulers.npz")["lr"]
    rates = [cosine_with_minimum(step, 1e-4, 50, 1000) for step in range(len(golden))]
    assert rates == pytest.approx(golden.tolist(), rel=1e-6, abs=1e-12)


def test_warm_up_rises_in_equal_steps_and_the_cosine_ends_at_a_tenth() -> None:
    assert [cosine_with_minimum(step, 8.0, 4, 10) for step in range(5)] == [0, 2, 4, 6, 8]
    assert cosine_with_minimum(7, 8.0, 4, 10) == pytest.approx(0.55 * 8)
    assert cosine_with_minimum(10, 8.0, 4, 10) == pytest.approx(0.8)
    assert cosine_with_minimum(99, 8.0, 4, 10) == pytest.approx(0.8)


def test_no_warm_up_starts_at_the_full_rate() -> None:
    assert cosine_with_minimum(0, 3.0, 0, 10) == 3.0


def test_a_run_shorter_than_its_warm_up_has_rates() -> None:
    assert cosine_with_minimum(5, 8.0, 10, 5) == 4.0
