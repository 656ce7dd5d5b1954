import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import ConfigError
from tests.training_fixtures import picture_bytes, write_tar
from training.config import DatasetConfig
from training.data import (
    Batch,
    Sample,
    check_labels,
    decode,
    evaluation_batches,
    expand_shards,
    read_class_names,
    read_samples,
    training_loader,
)

BATCH = 4


def sample_files(key: int) -> list[tuple[str, bytes]]:
    return [(f"{key:04d}.png", picture_bytes(key)), (f"{key:04d}.cls", str(key % 3).encode())]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of seven pictures, 21 in all: no multiple of the batch."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        keys = range(7 * shard, 7 * shard + 7)
        write_tar(folder / f"train-{shard:06d}.tar", [file for key in keys for file in sample_files(key)])
    return folder


def config(folder: Path, **changes: Any) -> DatasetConfig:
    shards = str(folder / "train-*.tar")
    settings = {"image_size": 16, "shuffle_buffer": 5, "workers": 0, **changes}
    return DatasetConfig(train_shards=shards, eval_shards=shards, **settings)


def take(settings: DatasetConfig, count: int, start: int = 0, seed: int = 3) -> list[Batch]:
    return list(islice(training_loader(settings, BATCH, seed, start), count))


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_does_not_depend_on_the_number_of_loader_processes(shards: Path, workers: int) -> None:
    assert same(take(config(shards, workers=workers), 8), take(config(shards), 8))


@pytest.mark.parametrize(("start", "workers"), [(1, 0), (5, 0), (6, 2), (11, 0)])
def test_a_stream_that_starts_later_gives_the_very_same_batches(
    shards: Path, start: int, workers: int
) -> None:
    whole = take(config(shards), 14)
    assert same(take(config(shards, workers=workers), 14 - start, start), whole[start:])


def test_another_seed_gives_another_order(shards: Path) -> None:
    assert not same(take(config(shards), 2, seed=3), take(config(shards), 2, seed=4))


def test_each_epoch_shows_every_picture_once_in_a_new_order(shards: Path) -> None:
    plain = config(shards, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    pictures = torch.cat([batch.images for batch in take(plain, 21)])  # 84 pictures are four epochs
    means = (pictures.mean((1, 2, 3)) * 1e6).round().long().view(4, 21)
    epochs = [sorted(epoch.tolist()) for epoch in means]
    assert len(set(epochs[0])) == 21
    assert epochs[0] == epochs[1] == epochs[2] == epochs[3]
    assert means[0].tolist() != means[1].tolist()


def test_pictures_keep_their_pixels_and_labels(shards: Path) -> None:
    batches = list(evaluation_batches(str(shards / "train-*.tar"), 16, 8))
    images, labels = torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
    assert [len(batch.labels) for batch in batches] == [8, 8, 5]
    assert labels.tolist() == [key % 3 for key in range(21)]
    pixels = np.random.default_rng(20).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal((images[20] * 255).round().byte().permute(1, 2, 0).numpy(), pixels)


def test_a_limit_ends_the_evaluation_early(shards: Path) -> None:
    assert sum(len(b.labels) for b in evaluation_batches(str(shards / "train-*.tar"), 16, 4, limit=6)) == 6


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Five sound samples among a truncated picture, one without class, one without picture, one odd class."""
    odd = [
        ("bad1.png", picture_bytes(50)[:200]),
        ("bad1.cls", b"1"),
        ("bad2.png", picture_bytes(51)),
        ("bad3.cls", b"2"),
        ("bad4.png", picture_bytes(52)),
        ("bad4.cls", b"cat"),
    ]
    files = [*sample_files(0), *odd, *(file for key in range(1, 5) for file in sample_files(key))]
    write_tar(tmp_path / "train-000000.tar", files)
    return tmp_path


def test_broken_samples_are_skipped_and_logged(broken: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        batches = list(evaluation_batches(str(broken / "train-*.tar"), 16, 8))
    assert [batch.labels.tolist() for batch in batches] == [[0, 1, 2, 0, 1]]
    assert all(
        any(f"sample {key} " in text for text in caplog.messages) for key in ("bad1", "bad2", "bad3", "bad4")
    )
    assert len(caplog.messages) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_makes_its_batch_smaller_and_moves_no_other(broken: Path, workers: int) -> None:
    sizes = [len(batch.labels) for batch in take(config(broken, workers=workers), 6)]
    assert sum(sizes) == 20  # four epochs of six readable entries, one of which has no decodable picture
    whole = take(config(broken), 6)
    assert same(take(config(broken, workers=workers), 3, start=3), whole[3:])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_without_any_sound_picture_ends_the_training_with_one_line(
    tmp_path: Path, workers: int
) -> None:
    write_tar(tmp_path / "train-000000.tar", [("0.png", b"no picture"), ("0.cls", b"0")])
    with pytest.raises(ConfigError, match=r"no picture of batch 0 can be decoded$") as caught:
        take(config(tmp_path, workers=workers), 1)
    assert "\n" not in str(caught.value)


def test_shards_without_samples_are_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-000000.tar", [("readme.txt", b"hello")])
    with pytest.raises(ConfigError, match="no labelled picture"):
        take(config(tmp_path), 1)
    with pytest.raises(ConfigError, match="no labelled picture"):
        list(evaluation_batches(str(tmp_path / "*.tar"), 16, 4))


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "train-000000.tar"
    write_tar(path, [file for key in range(5) for file in sample_files(key)])
    path.write_bytes(path.read_bytes()[:3500] if damage == "truncated" else b"garbage " * 400)
    with pytest.raises(ConfigError, match=r"train-000000\.tar: not a sound WebDataset shard"):
        list(read_samples([str(path)]))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no shard file at .*none\.tar"):
        expand_shards(str(tmp_path / "none.tar"))
    with pytest.raises(ConfigError, match="no shard file"):
        expand_shards(str(tmp_path / "*.tar"))


def test_shard_patterns_expand_in_order(shards: Path) -> None:
    names = [f"train-00000{n}.tar" for n in range(3)]
    for pattern in ("train-{000000..000002}.tar", "train-*.tar"):
        assert [Path(name).name for name in expand_shards(str(shards / pattern))] == names


def test_train_and_validation_pictures_of_the_fruit_set_do_not_overlap(shared_data: Path) -> None:
    fruit = shared_data / "data" / "fruit"
    train, val = ({s.image for s in read_samples([str(fruit / name)])} for name in ("train.tar", "val.tar"))
    assert len(train) > 4000
    assert len(val) > 900
    assert not train & val


def test_class_names_are_read_from_beside_the_shards_or_from_a_named_file(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-000000.tar", sample_files(0))
    (tmp_path / "classes.json").write_text(json.dumps({"1": "b", "0": "a"}))
    assert read_class_names(config(tmp_path)) == ("a", "b")
    (tmp_path / "other.json").write_text(json.dumps({"0": "x"}))
    assert read_class_names(config(tmp_path, classes=str(tmp_path / "other.json"))) == ("x",)


@pytest.mark.parametrize("text", ['{"0": "a", "2": "b"}', "[]", "{", '"a"', "3"])
def test_class_names_in_another_form_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"classes\.json: class names are read from"):
        read_class_names(config(tmp_path, classes=str(path)))


def test_a_class_beyond_those_of_the_recipe_is_named() -> None:
    check_labels(torch.tensor([0, 2]), 3)
    with pytest.raises(ConfigError, match="class 3; the recipe has 3 classes, 0 to 2"):
        check_labels(torch.tensor([0, 3]), 3)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd metadata and of large pictures
def test_no_hostile_file_stops_the_reader(shared_data: Path) -> None:
    files = sorted((shared_data / "data" / "hostile" / "files").iterdir())
    assert len(files) > 20
    for file in files:
        image = decode(Sample(file.name, file.read_bytes(), 0))
        assert image is None or image.mode == "RGB"
