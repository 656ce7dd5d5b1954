"""The Inception network against torch-fidelity 0.3.0.

`golden_inception.npz` was written once by torch-fidelity's FeatureExtractorInceptionV3, which cannot be
installed beside a CPU build of torch: the pictures, its features '2048' and 'logits_unbiased', the first 7
channels after the ReLU of its Mixed_6d.branch1x1, and its state-dict keys. The weights are those of
`golden_weights`, seed 7, with convolutions times the root of 2 and variances 1 + |x|.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import CheckpointError
from tests.golden_weights import make_weights
from training.evaluation.feature_network import open_features
from training.evaluation.inception import Inception2015, load_inception, tensorflow_resize

GOLDEN = Path(__file__).parent / "golden_inception.npz"
SEED = 7


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    shapes = {key: tuple(value.shape) for key, value in Inception2015().state_dict().items()}
    made = make_weights({key: shapes[key] for key in shapes if not key.endswith("batches_tracked")}, SEED)
    for key, value in made.items():
        if key.endswith("running_var"):
            made[key] = 1 + np.abs(value)
        elif key.endswith("conv.weight"):
            made[key] = value * np.float32(2**0.5)
    return {key: torch.from_numpy(value) for key, value in made.items()}


def test_features_logits_and_spatial_features_are_those_of_torch_fidelity(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "inception.pth")
    network = open_features("inception", str(tmp_path / "inception.pth"), "cpu")
    assert network.published
    with np.load(GOLDEN) as golden:
        assert sorted(weights) == golden["keys"].tolist()
        found = network(torch.from_numpy(golden["images"]))
        for name in ("pooled", "logits", "spatial"):
            got, expected = getattr(found, name), golden[name]
            assert got.shape == expected.shape
            assert np.abs(got.numpy() - expected).max() <= 1e-5 * np.abs(expected).max(), name


def test_a_file_with_other_keys_is_refused_by_name(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({key: value for key, value in weights.items() if not key.startswith("fc.")}, path)
    with pytest.raises(CheckpointError, match=r"other\.pth does not fit the network: missing fc\.weight"):
        load_inception(path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_inception(tmp_path / "none.pth")


def resized_by_definition(image: np.ndarray, side: int) -> np.ndarray:
    """TensorFlow 1's resize_bilinear with align_corners=False, pixel by pixel; `image` (H, W)."""
    height, width = image.shape
    result = np.empty((side, side))
    for i in range(side):
        for j in range(side):
            y, x = i * height / side, j * width / side
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = y - top, x - left
            upper = image[top, left] * (1 - dx) + image[top, right] * dx
            lower = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
            result[i, j] = upper * (1 - dy) + lower * dy
    return result


@pytest.mark.parametrize(("size", "side"), [((5, 8), 13), ((16, 16), 7), ((9, 9), 9)])
def test_the_resize_is_that_of_tensorflow_1(size: tuple[int, int], side: int) -> None:
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 255
    got = tensorflow_resize(images, side)
    for k in range(2):
        for channel in range(3):
            expected = resized_by_definition(images[k, channel].double().numpy(), side)
            assert np.allclose(got[k, channel].numpy(), expected, atol=1e-3)
