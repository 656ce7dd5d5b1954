from __future__ import annotations

import logging
from pathlib import Path

import pytest

from models.errors import ConfigError
from tests.training_fixtures import picture_bytes, sample_files, write_shard, write_tar
from training.data.parquet_shard import ParquetShard
from training.data.sources import expand, find_shards, read_samples
from training.data.tar_shard import TarShard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of four pictures, and two pictures as files."""
    path = tmp_path_factory.mktemp("sources")
    for shard in range(3):
        write_shard(path / f"train-{shard:06d}.tar", range(4 * shard, 4 * shard + 4))
    for name, key in (("x", 100), ("y", 101)):
        (path / "classes" / name).mkdir(parents=True)
        (path / "classes" / name / "a.png").write_bytes(picture_bytes(key))
    return path


def names(folder: Path, pattern: str) -> list[str]:
    return [Path(name).name for name in expand(f"{folder}/{pattern}")]


def test_braces_globs_and_lists_expand_in_order(folder: Path) -> None:
    everything = [f"train-00000{n}.tar" for n in range(3)]
    assert names(folder, "train-{000000..000002}.tar") == everything
    assert names(folder, "train-*.tar") == everything
    assert names(folder, "train-00000[02].tar") == everything[::2]
    assert names(folder, f"train-000002.tar::{folder}/train-{{000001,000000}}.tar") == everything[::-1]


def test_urls_expand_in_braces_and_where_the_scheme_can_list_in_globs(folder: Path) -> None:
    url = "https://host/a-{00..02}.tar?token=a*b"
    assert expand(url) == [f"https://host/a-0{n}.tar?token=a*b" for n in range(3)]
    found = expand(f"file://{folder}/train-*.tar")
    assert found == [f"file://{folder}/train-00000{n}.tar" for n in range(3)]
    assert [s.key for s in read_samples(found[1])] == ["0004", "0005", "0006", "0007"]


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing found at '.*none\.tar'; expected are \.tar or \.parquet"):
        expand(f"{folder}/none.tar")
    with pytest.raises(ConfigError, match=r"nothing found at '.*/x\*\.tar'"):
        expand(f"{folder}/x*.tar")
    with pytest.raises(ConfigError, match=r"train-000003\.tar', '.*5\.tar' and 4 more; expected"):
        expand(f"{folder}/train-{{000000..000009}}.tar")
    with pytest.raises(ConfigError, match=r"nothing found at ''"):
        expand("")
    with pytest.raises(ConfigError, match=r"a\{1\.tar: "):
        expand("a{1.tar")


def test_kinds_are_told_by_their_names(folder: Path) -> None:
    found = find_shards("https://h/a.TAR?x=1::https://h/b.parquet", image_column="png", label_column="y")
    assert found == [TarShard("https://h/a.TAR?x=1"), ParquetShard("https://h/b.parquet", "png", "y")]
    (folder / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"notes\.txt: no data set; expected are"):
        find_shards(f"{folder}/notes.txt")


def test_samples_of_all_sources_come_once_in_an_order_that_stays(folder: Path) -> None:
    pattern = f"{folder}/classes::{folder}/train-*.tar"
    samples = list(read_samples(pattern))
    assert sorted(sample.key for sample in samples[:2]) == ["x/a.png", "y/a.png"]
    assert [sample.key for sample in samples[2:]] == [f"{key:04d}" for key in range(12)]
    assert samples == list(read_samples(pattern))


def test_samples_with_a_fault_are_logged_with_key_and_shard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(tmp_path / "a.tar", [*sample_files(0), ("bad.png", b"x"), *sample_files(1)])
    with caplog.at_level(logging.WARNING):
        assert [sample.key for sample in read_samples(f"{tmp_path}/a.tar")] == ["0000", "0001"]
    (message,) = caplog.messages
    assert message.startswith(f"sample bad of {tmp_path}/a.tar was skipped: no class number")


def test_train_and_validation_pictures_of_the_fruit_set_do_not_overlap(shared_data: Path) -> None:
    fruit = shared_data / "data" / "fruit"
    train, val = ({s.image for s in read_samples(str(fruit / name))} for name in ("train.tar", "val.tar"))
    assert len(train) > 4000
    assert len(val) > 900
    assert not train & val
