from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigError
from tests.file_server import FileServer, serve_files
from tests.training_fixtures import picture_bytes
from training.data.parquet_shard import ROWS, ParquetShard, parquet_class_names

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

COUNT = 2 * ROWS + 5  # row groups of 40: one is decoded in two steps
NAMES = ("ant", "bee", "cat")
PICTURES = [picture_bytes(key) for key in range(COUNT)]


def table(images: Any, labels: Any, **names: str) -> Any:
    return pa.table({names.get("image", "image"): images, names.get("label", "label"): labels})


def hugging_face_table() -> Any:
    """As the `datasets` library writes it: a struct, and class names in the metadata."""
    images = pa.array(
        [{"bytes": data, "path": f"{key}.png"} for key, data in enumerate(PICTURES)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    info = {"info": {"features": {"label": {"names": list(NAMES), "_type": "ClassLabel"}}}}
    labels = pa.array([key % 3 for key in range(COUNT)], pa.int64())
    return table(images, labels).replace_schema_metadata({"huggingface": json.dumps(info)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parquet")
    pq.write_table(hugging_face_table(), path / "struct.parquet", row_group_size=40)
    plain = table(
        pa.array(PICTURES), pa.array([k % 3 for k in range(COUNT)], pa.int8()), image="png", label="y"
    )
    pq.write_table(plain, path / "plain.parquet", row_group_size=40)
    return path


@pytest.fixture
def server(folder: Path) -> Iterator[FileServer]:
    with serve_files(folder) as files:
        yield files


def shard(path: Path | str, image: str = "image", label: str = "label") -> ParquetShard:
    return ParquetShard(str(path), image, label)


@pytest.mark.parametrize(
    ("file", "columns"), [("struct.parquet", ("image", "label")), ("plain.parquet", ("png", "y"))]
)
def test_bytes_and_the_struct_of_hugging_face_give_every_row(
    folder: Path, file: str, columns: tuple[str, str]
) -> None:
    samples = list(shard(folder / file, *columns).read())
    assert [(s.index, s.image, s.label, s.fault) for s in samples] == [
        (key, data, key % 3, "") for key, data in enumerate(PICTURES)
    ]


@given(start=st.integers(0, COUNT + 2), step=st.integers(1, COUNT + 2))
def test_a_read_from_the_middle_with_a_step_is_a_slice_of_the_whole(
    folder: Path, start: int, step: int
) -> None:
    reader = shard(folder / "struct.parquet")
    expected = [(key, data) for key, data in enumerate(PICTURES)][start::step]
    assert [(sample.index, sample.image) for sample in reader.read(start, step)] == expected


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_shard_at_a_url_gives_the_same_rows(folder: Path, server: FileServer, scheme: str) -> None:
    url = server.url if scheme == "http" else f"file://{folder}"
    samples = list(shard(f"{url}/struct.parquet").read(2, 3))
    assert [sample.image for sample in samples] == PICTURES[2::3]


def test_rows_without_picture_or_class_say_so(tmp_path: Path) -> None:
    images = pa.array([PICTURES[0], None, b"", PICTURES[1], PICTURES[2]], pa.large_binary())
    pq.write_table(table(images, pa.array([1, 2, 0, None, -1], pa.int32())), tmp_path / "a.parquet")
    faults = [sample.fault for sample in shard(tmp_path / "a.parquet").read()]
    assert faults == [
        "",
        "no picture in column image",
        "no picture in column image",
        "no class number in column label (None)",
        "no class number in column label (-1)",
    ]


def refused(path: Path, message: str, *columns: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        list(shard(path, *columns).read())
    assert "\n" not in str(caught.value)


def test_wrong_columns_are_named_with_those_that_exist(folder: Path, tmp_path: Path) -> None:
    refused(folder / "plain.parquet", r"plain\.parquet: no column 'image'; there are png, y")
    refused(folder / "plain.parquet", "no column 'class'; there are png, y", "png", "class")
    refused(folder / "plain.parquet", "column 'y' is int8; needed are binary", "y", "y")
    texts = table(pa.array(PICTURES[:1]), pa.array(["cat"]))
    pq.write_table(texts, tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "column 'label' is string; needed are integers, the class numbers")


def test_damaged_and_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    refused(tmp_path / "a.parquet", r"a\.parquet: not a sound Parquet file")
    data = (folder / "struct.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "b.parquet", r"b\.parquet: not a sound Parquet file")
    refused(tmp_path / "none.parquet", r"none\.parquet: cannot be read \(.*No such file")


def test_class_names_of_hugging_face_are_read_from_the_file(folder: Path) -> None:
    assert parquet_class_names(str(folder / "struct.parquet"), "label") == NAMES
    assert parquet_class_names(str(folder / "struct.parquet"), "other") is None
    assert parquet_class_names(str(folder / "plain.parquet"), "y") is None
