from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.errors import ConfigError
from tests.file_server import FileServer, serve_files
from tests.training_fixtures import picture_bytes, write_shard
from training.data.class_names import check_class_folders, read_class_names
from training.data.config import DatasetConfig


def config(train: object, eval_shards: object = "v", **changes: Any) -> DatasetConfig:
    return DatasetConfig(
        train_shards_path_or_url=str(train),
        eval_shards_path_or_url=str(eval_shards),
        resolution=16,
        **changes,
    )


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shard(tmp_path / "a.tar", [0])
    (tmp_path / "classes.json").write_text(json.dumps({"1": "b", "0": "ä"}), encoding="utf-8")
    return tmp_path


@pytest.fixture
def server(shards: Path) -> Iterator[FileServer]:
    with serve_files(shards) as files:
        yield files


def make_folder(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).mkdir(parents=True)
        (path / name / "a.png").write_bytes(picture_bytes(0))
    return path


def test_names_are_read_from_beside_the_shards_or_from_a_named_file(shards: Path, server: FileServer) -> None:
    assert read_class_names(config(shards / "*.tar")) == ("ä", "b")
    assert read_class_names(config(f"{server.url}/a.tar?token=1")) == ("ä", "b")
    (shards / "other.json").write_text(json.dumps({"0": "x"}))
    for other in (str(shards / "other.json"), f"{server.url}/other.json"):
        assert read_class_names(config(shards / "*.tar", classes=other)) == ("x",)


def test_names_of_a_folder_are_those_of_its_sub_folders(tmp_path: Path) -> None:
    assert read_class_names(config(make_folder(tmp_path / "f", "bee", "ant"))) == ("ant", "bee")


def test_names_of_a_parquet_file_are_its_own_or_stand_beside_it(shards: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": [b"x"], "label": [0]})
    pq.write_table(table, shards / "plain.parquet")
    assert read_class_names(config(shards / "plain.parquet")) == ("ä", "b")
    info = {"info": {"features": {"label": {"names": ["p", "q"]}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), shards / "own.parquet")
    assert read_class_names(config(shards / "own.parquet")) == ("p", "q")


@pytest.mark.parametrize("text", ['{"0": "a", "2": "b"}', "[]", "{}", "{", '"a"', "3", None])
def test_names_in_another_form_or_none_are_refused_with_the_form(shards: Path, text: str | None) -> None:
    (shards / "classes.json").unlink()
    if text is not None:
        (shards / "classes.json").write_text(text)
    with pytest.raises(
        ConfigError, match=r"classes\.json: class names are read from a JSON object"
    ) as caught:
        read_class_names(config(shards / "a.tar"))
    assert "\n" not in str(caught.value)


def test_folders_that_would_number_their_classes_differently_are_refused(
    tmp_path: Path, shards: Path
) -> None:
    train = make_folder(tmp_path / "train", "ant", "bee", "cat")
    val = make_folder(tmp_path / "val", "bee", "cat")
    with pytest.raises(ConfigError, match=r"train and .*val do not have the same class folders \(ant\)"):
        check_class_folders(config(train, val))
    with pytest.raises(ConfigError, match="do not have the same class folders"):
        read_class_names(config(f"{train}::{val}"))
    (val / "ant").mkdir()
    check_class_folders(config(train, val))
    check_class_folders(config(train, shards / "a.tar"))
    check_class_folders(config(shards / "a.tar", shards / "a.tar"))
