from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import ConfigError
from tests.file_server import serve_files
from tests.training_fixtures import key_of, picture_bytes, sample_files, write_shard, write_tar
from training.data.batch import Batch, check_labels
from training.data.config import DatasetConfig
from training.data.loading import evaluation_batches, own_parts, training_loader

# More loader processes than processor cores are no mistake here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

BATCH, KEYS = 4, 42
PLAIN: dict[str, Any] = {"use_random_crop": False, "flip": False}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of seven pictures, 42 in all: no multiple of the batch."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(6):
        write_shard(folder / f"train-{shard:06d}.tar", range(7 * shard, 7 * shard + 7))
    return folder


def config(folder: Path | str, pattern: str = "train-*.tar", **changes: Any) -> DatasetConfig:
    settings = {"resolution": 16, "shuffle_buffer_size": 5, "num_workers_per_gpu": 0, **changes}
    source = f"{folder}/{pattern}"
    return DatasetConfig(train_shards_path_or_url=source, eval_shards_path_or_url=source, **settings)


def take(settings: DatasetConfig, number: int, start: int = 0, **options: Any) -> list[Batch]:
    options = {"batch_size": BATCH, "seed": 3, **options}
    return list(islice(training_loader(settings, start=start, **options), number))


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.position == b.position
        for a, b in zip(left, right, strict=True)
    )


def keys(batches: list[Batch]) -> list[int]:
    """Which samples the uncropped pictures of `batches` are."""
    images = torch.cat([batch.images for batch in batches]).mul(255).round().byte().permute(0, 2, 3, 1)
    return [key_of(image.numpy(), KEYS) for image in images]


def joined(position: Any) -> Any:
    """A position as a checkpoint gives it back."""
    return json.loads(json.dumps(position))


def test_pictures_keep_their_pixels_and_labels(shards: Path) -> None:
    batches = take(config(shards, **PLAIN), 10)
    assert torch.cat([batch.labels for batch in batches]).tolist() == [key % 3 for key in keys(batches)]
    assert batches[0].images.dtype == torch.float32
    assert batches[0].labels.dtype == torch.int64


@pytest.mark.parametrize("pattern", ["train-*.tar", "train-00000[01].tar"])
def test_two_ranks_with_two_loaders_never_share_a_sample_in_an_epoch_and_see_all(
    shards: Path, pattern: str
) -> None:
    settings = config(shards, pattern, num_workers_per_gpu=2, **PLAIN)
    size = KEYS if pattern == "train-*.tar" else 14
    lanes: dict[str, dict[int, list[int]]] = {}
    for rank in range(2):
        before: Any = {}
        for batch in islice(training_loader(settings, 1, 3, 0, rank=rank, world=2), 2 * size):
            (moved,) = [k for k, v in batch.position.items() if v != before.get(k, [0, 0, 0, 0])]
            lanes.setdefault(moved, {}).setdefault(batch.position[moved][0], []).append(keys([batch])[0])
            before = batch.position
    assert len(lanes) == 4
    for epoch in range(2):
        seen = [key for lane in lanes.values() for key in lane[epoch]]
        assert sorted(seen) == list(range(size))


@pytest.mark.parametrize("workers", [0, 2])
def test_one_process_with_the_double_batch_sees_the_batches_of_two(shards: Path, workers: int) -> None:
    settings = config(shards, num_workers_per_gpu=workers, parts=2)
    one = take(settings, 16, batch_size=2 * BATCH)
    two = [take(settings, 16, rank=rank, world=2) for rank in range(2)]
    for whole, first, second in zip(one, *two, strict=True):
        assert torch.equal(whole.images, torch.cat([first.images, second.images]))
        assert torch.equal(whole.labels, torch.cat([first.labels, second.labels]))
        assert whole.position == {**first.position, **second.position}


def test_no_loader_process_and_one_give_the_same_batches(shards: Path) -> None:
    assert same(take(config(shards, num_workers_per_gpu=1), 12), take(config(shards), 12))


@pytest.mark.parametrize(("workers", "parts"), [(0, 1), (0, 2), (1, 1), (2, 2), (3, 1)])
def test_a_stream_that_resumes_gives_the_very_same_batches(shards: Path, workers: int, parts: int) -> None:
    settings = config(shards, num_workers_per_gpu=workers, parts=parts)
    whole = take(settings, 30)
    for start in (1, 11, 23):
        resumed = take(settings, 30 - start, start, position=joined(whole[start - 1].position))
        assert same(resumed, whole[start:])


def test_every_batch_can_be_resumed_at(broken: Path) -> None:
    settings = config(broken, parts=2)
    whole = take(settings, 40)
    assert sum(batch.skipped for batch in whole) > 0
    for start in range(1, 40):
        resumed = take(settings, 1, start, position=joined(whole[start - 1].position))
        assert same(resumed, [whole[start]])
        assert resumed[0].skipped == whole[start].skipped


@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_start_without_a_position_runs_through_the_stream(shards: Path, workers: int) -> None:
    settings = config(shards, num_workers_per_gpu=workers)
    assert same(take(settings, 3, 8), take(settings, 11)[8:])


def test_two_processes_continue_what_one_began(shards: Path) -> None:
    settings = config(shards, parts=2)
    one = take(settings, 10, batch_size=2 * BATCH)
    position = joined(one[5].position)
    two = [take(settings, 4, 6, rank=rank, world=2, position=position) for rank in range(2)]
    assert torch.equal(one[9].images, torch.cat([two[0][3].images, two[1][3].images]))


def test_data_that_are_divided_otherwise_continue_with_the_next_epoch(
    shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    position = take(config(shards), 12)[-1].position
    with caplog.at_level(logging.WARNING):
        resumed = take(config(shards, num_workers_per_gpu=2), 2, 12, position=position)
    assert "divided otherwise" in caplog.text
    assert "continues with epoch 2" in caplog.text
    assert {moved[0] for moved in resumed[-1].position.values()} == {2}


def test_another_seed_gives_another_order(shards: Path) -> None:
    first, second = take(config(shards, **PLAIN), 3), take(config(shards, **PLAIN), 3, seed=4)
    assert keys(first) != keys(second)


def test_a_picture_is_cropped_differently_in_each_epoch(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-000000.tar", [0])
    batches = take(config(tmp_path, min_scale=0.3), 2)
    pictures = torch.cat([batch.images for batch in batches])
    assert len({picture.numpy().tobytes() for picture in pictures}) == 8


def test_pictures_of_many_sizes_share_a_batch(tmp_path: Path) -> None:
    sizes = [(16, 16), (3, 200), (500, 7), (1, 1), (40, 30)]
    files = [
        file
        for key, size in enumerate(sizes)
        for file in ((f"{key}.png", picture_bytes(key, size)), (f"{key}.cls", b"0"))
    ]
    write_tar(tmp_path / "train-000000.tar", files)
    for changes in ({}, PLAIN, {"interpolation": "bicubic"}):
        (batch,) = take(config(tmp_path, **changes), 1, batch_size=5)
        assert batch.images.shape == (5, 3, 16, 16)
        assert batch.images.min() >= 0
        assert batch.images.max() <= 1


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


def test_broken_samples_are_logged_counted_and_replaced_by_the_next(
    broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        batches = take(config(broken, **PLAIN), 10)
    assert all(len(batch.labels) == BATCH for batch in batches)
    skipped = sum(batch.skipped for batch in batches)
    assert skipped == len(caplog.messages)
    assert 28 <= skipped <= 32  # in the seven to eight epochs
    pictures = keys(batches)
    assert [sorted(pictures[at : at + 5]) for at in range(0, 40, 5)] == [[0, 1, 2, 3, 4]] * 8
    shard = broken / "train-000000.tar"
    for name, reason in (("bad1", "no sound picture"), ("bad2", "no class"), ("bad3", "no picture")):
        assert any(
            f"sample {name} of {shard} was skipped: {reason}" in message for message in caplog.messages
        )


def test_broken_samples_are_counted_in_loader_processes_too(broken: Path) -> None:
    in_process = [batch.skipped for batch in take(config(broken), 10)]
    assert [batch.skipped for batch in take(config(broken, num_workers_per_gpu=1), 10)] == in_process


def fails(settings: DatasetConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        take(settings, 12)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_with_the_data_ends_the_training_with_one_line(tmp_path: Path, workers: int) -> None:
    shard = tmp_path / "train-000000.tar"
    settings = config(tmp_path, num_workers_per_gpu=workers)
    write_tar(shard, [("0.png", b"no picture"), ("0.cls", b"0")])
    fails(
        settings, r"^1000 samples in a row cannot be used; the last is sample 0 of .*000000\.tar: no picture"
    )
    write_tar(shard, [])
    fails(settings, r"^.*000000\.tar: no samples in this or the other shards$")
    shard.write_bytes(b"garbage " * 400)
    fails(settings, r"^.*train-000000\.tar: not a sound tar file \(")
    shard.unlink()
    fails(settings, r"^nothing found at .*train-\*\.tar")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanishes_from_its_server_ends_the_training_with_one_line(
    shards: Path, workers: int
) -> None:
    with serve_files(shards) as server:
        urls = f"{server.url}/train-{{000000..000006}}.tar"
        settings = config(server.url, "train-{000000..000006}.tar", num_workers_per_gpu=workers)
        assert settings.train_shards_path_or_url == urls
        fails(settings, r"train-000006\.tar: cannot be read \(404 Not Found\)$")


def test_shards_on_a_server_give_the_batches_of_the_local_ones(shards: Path) -> None:
    pattern = "train-{000000..000005}.tar"
    with serve_files(shards) as server:
        server.cuts = [2000, 3000]
        remote = take(config(server.url, pattern, num_workers_per_gpu=2), 8)
    assert same(remote, take(config(shards, pattern, num_workers_per_gpu=2), 8))


def test_wrong_columns_are_named_from_inside_a_loader_process(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"img": [picture_bytes(0)], "label": [0]}), tmp_path / "a.parquet")
    fails(
        config(tmp_path, "a.parquet", num_workers_per_gpu=1),
        r"^.*a\.parquet: no column 'image'; there are img",
    )


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for number in range(2):
        part = range(21 * number, 21 * number + 21)
        images = [{"bytes": picture_bytes(key), "path": None} for key in part]
        table = pa.table({"image": images, "label": [key % 3 for key in part]})
        pq.write_table(table, tmp_path / f"train-{number}.parquet", row_group_size=5)
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for key in range(KEYS):
        path = tmp_path / "train" / "abc"[key % 3] / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture_bytes(key))
    return tmp_path


@pytest.mark.parametrize(("kind", "pattern"), [("parquet", "train-{0..1}.parquet"), ("folder", "train")])
def test_parquet_files_and_folders_are_read_like_shards(
    request: pytest.FixtureRequest, kind: str, pattern: str
) -> None:
    place: Path = request.getfixturevalue(kind)
    settings = config(place, pattern, num_workers_per_gpu=2, **PLAIN)
    whole = take(settings, 2 * KEYS, batch_size=1)
    assert [batch.labels.item() for batch in whole] == [key % 3 for key in keys(whole)]
    assert set(keys(whole)) == set(range(KEYS))
    resumed = take(settings, 20, 30, batch_size=1, position=joined(whole[29].position))
    assert same(resumed, whole[30:50])
    evaluated = list(evaluation_batches(f"{place}/{pattern}", 16, 8))
    assert sorted(keys(evaluated)) == list(range(KEYS))


def test_parts_are_divided_evenly_among_processes(shards: Path) -> None:
    assert [list(own_parts(config(shards, parts=4), rank, 2)) for rank in range(2)] == [[0, 1], [2, 3]]
    assert [list(own_parts(config(shards), rank, 3)) for rank in range(3)] == [[0], [1], [2]]
    with pytest.raises(ConfigError, match="parts is 3; a multiple of the 2 processes is needed"):
        own_parts(config(shards, parts=3), 0, 2)
    with pytest.raises(
        ConfigError, match="a batch of 4 pictures a process cannot be shared evenly by its 3 parts"
    ):
        take(config(shards, parts=3), 1)


def test_evaluation_gives_the_pictures_in_file_order(shards: Path) -> None:
    batches = list(evaluation_batches(f"{shards}/train-*.tar", 16, 8))
    assert [len(batch.labels) for batch in batches] == [8, 8, 8, 8, 8, 2]
    assert keys(batches) == list(range(KEYS))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [key % 3 for key in range(KEYS)]


def test_a_limit_ends_the_evaluation_early(shards: Path) -> None:
    for limit in (6, 8):
        batches = evaluation_batches(f"{shards}/train-*.tar", 16, 4, limit=limit)
        assert sum(len(batch.labels) for batch in batches) == limit


def test_evaluation_counts_and_logs_what_it_leaves_out(
    broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        (batch,) = evaluation_batches(f"{broken}/train-*.tar", 16, 8)
    assert keys([batch]) == [0, 1, 2, 3, 4]
    assert batch.skipped == len(caplog.messages) == 4


def test_an_evaluation_without_pictures_is_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("readme.txt", b"hello")])
    with pytest.raises(ConfigError, match=r"a\.tar: no labelled picture that can be decoded"):
        list(evaluation_batches(f"{tmp_path}/a.tar", 16, 4))


def test_a_class_beyond_those_of_the_recipe_is_named() -> None:
    check_labels(torch.tensor([0, 2]), 3)
    with pytest.raises(ConfigError, match="class 3; the recipe has 3 classes, 0 to 2"):
        check_labels(torch.tensor([0, 3]), 3)


def test_a_loader_that_is_closed_leaves_no_process(shards: Path) -> None:
    import psutil

    before = {child.pid for child in psutil.Process().children()}
    batches = training_loader(config(shards, num_workers_per_gpu=2), BATCH, 3, 0)
    assert isinstance(batches, Iterator)
    next(batches)
    assert len({child.pid for child in psutil.Process().children()} - before) == 2
    batches.close()  # type: ignore[attr-defined]
    assert {child.pid for child in psutil.Process().children()} <= before


def test_images_of_a_batch_are_stacked_and_scaled(shards: Path) -> None:
    (batch,) = take(config(shards, **PLAIN), 1)
    assert np.isclose(batch.images.max().item(), 1, atol=0.02)
