import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.errors import ConfigError
from training.data.loading import evaluation_batches
from training.data.sources import read_samples
from training.data.synthetic import DRAWINGS, draw_picture, synthetic_shards

Pictures = NDArray[np.float64]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic_shards(folder, classes=len(DRAWINGS), per_class=40, val_per_class=10)
    return folder


def load(folder: Path, split: str) -> tuple[Pictures, NDArray[np.int64]]:
    samples = list(read_samples(str(folder / f"{split}-000000.tar")))
    pictures = [np.asarray(Image.open(io.BytesIO(sample.image)).convert("RGB")) for sample in samples]
    return np.stack(pictures) / 255, np.array([sample.label for sample in samples])


def test_every_class_has_its_pictures_in_either_split(shards: Path) -> None:
    for split, count in (("train", 40), ("val", 10)):
        pictures, labels = load(shards, split)
        assert pictures.shape == (len(DRAWINGS) * count, 32, 32, 3)
        assert np.bincount(labels).tolist() == [count] * len(DRAWINGS)
        assert labels.tolist() != sorted(labels)


def test_class_names_are_those_of_the_drawings(shards: Path) -> None:
    names = json.loads((shards / "classes.json").read_text())
    assert list(names.values()) == [drawing.__name__ for drawing in DRAWINGS]
    assert list(names) == [str(label) for label in range(len(DRAWINGS))]


def test_nearest_class_means_name_the_pictures_far_better_than_chance(shards: Path) -> None:
    pictures, labels = load(shards, "train")
    means = np.stack([pictures[labels == label].mean(0) for label in range(len(DRAWINGS))])
    held_out, wanted = load(shards, "val")
    distances = ((held_out[:, None] - means) ** 2).mean((2, 3, 4))
    assert (distances.argmin(1) == wanted).mean() > 0.9  # chance is 0.1


def test_no_two_pictures_are_the_same(shards: Path) -> None:
    images = [
        s.image for split in ("train", "val") for s in read_samples(str(shards / f"{split}-000000.tar"))
    ]
    assert len(set(images)) == len(images) == len(DRAWINGS) * 50


def test_pictures_of_a_class_vary_and_fill_the_frame_moderately(shards: Path) -> None:
    pictures, labels = load(shards, "train")
    for label in range(len(DRAWINGS)):
        own = pictures[labels == label]
        assert own.std(0).mean() > 0.04
        assert own.std((1, 2)).mean() > 0.05  # no picture is flat


def digest(folder: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        synthetic_shards(tmp_path / name, classes=2, per_class=3, val_per_class=1, image_size=16, seed=seed)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a")[1:] != digest(tmp_path / "c")[1:]


def test_a_picture_is_a_function_of_its_random_numbers() -> None:
    for label in range(len(DRAWINGS)):
        first, second = (draw_picture(label, 24, np.random.default_rng(5)) for _ in range(2))
        assert first.size == (24, 24)
        assert first.mode == "RGB"
        assert first.tobytes() == second.tobytes()
        assert first.tobytes() != draw_picture(label, 24, np.random.default_rng(6)).tobytes()


def test_the_shards_feed_the_training_reader(tmp_path: Path) -> None:
    synthetic_shards(tmp_path, classes=3, per_class=2, val_per_class=2, image_size=16)
    (batch,) = evaluation_batches(str(tmp_path / "val-*.tar"), 16, 8)
    assert batch.images.shape == (6, 3, 16, 16)
    assert sorted(batch.labels.tolist()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, f"classes is 1; allowed are 2 to {len(DRAWINGS)}"),
        ({"classes": 99}, "classes is 99"),
        ({"per_class": 0}, "per_class is 0"),
        ({"val_per_class": 0}, "val_per_class is 0"),
        ({"image_size": 4}, "image_size is 4; it must be at least 8 pixels"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        synthetic_shards(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thing").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        synthetic_shards(tmp_path)
