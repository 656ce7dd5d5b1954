from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest

from models.errors import ConfigError
from tests.training_fixtures import picture_bytes
from training.data.folder_shard import FILES_PER_SHARD, folder_shards

COUNTS = {"ant": 300, "bee": 0, "cat": 200}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, one of them without pictures and one with deeper folders."""
    path = tmp_path_factory.mktemp("pictures")
    for name, count in COUNTS.items():
        (path / name / "deeper").mkdir(parents=True)
        for k in range(count):
            folder = path / name / "deeper" if name == "cat" and k % 2 else path / name
            (folder / f"{k}.{('jpg', 'PNG', 'webp', 'JPEG')[k % 4]}").write_bytes(f"{name} {k}".encode())
    (path / "notes.txt").touch()
    (path / ".hidden").mkdir()
    return path


def test_every_picture_comes_once_with_the_number_of_its_folder(root: Path) -> None:
    samples = [sample for shard in folder_shards(root) for sample in shard.read()]
    expected = Counter(
        (f"{name} {k}".encode(), label)
        for label, (name, count) in enumerate(COUNTS.items())
        for k in range(count)
    )
    assert Counter((sample.image, sample.label) for sample in samples) == expected
    assert all(sample.key.startswith(("ant/", "cat/")) for sample in samples)


def test_the_order_mixes_classes_and_is_always_the_same(root: Path) -> None:
    first, second = folder_shards(root), folder_shards(root)
    assert len(first) == -(-500 // FILES_PER_SHARD)
    for shard, again in zip(first, second, strict=True):
        assert list(shard.read()) == list(again.read())
        share = sum(sample.label == 0 for sample in shard.read()) / len(list(shard.read()))
        assert abs(share - 0.6) < 0.15


def test_a_read_from_the_middle_with_a_step_is_a_slice_of_the_whole(root: Path) -> None:
    shard = folder_shards(root)[0]
    assert list(shard.read(7, 5)) == list(shard.read())[7::5]
    assert list(shard.read(FILES_PER_SHARD)) == []


def test_files_that_are_no_pictures_are_counted_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "a.png").write_bytes(picture_bytes(0))
    (tmp_path / "ant" / "b.txt").touch()
    (tmp_path / "ant" / ".c.png").touch()
    with caplog.at_level(logging.WARNING):
        (shard,) = folder_shards(tmp_path)
    assert [sample.key for sample in shard.read()] == ["ant/a.png"]
    assert caplog.messages == [f"{tmp_path}: 1 files are left out; pictures end in .jpg, .jpeg, .png, .webp"]


def test_a_file_that_is_gone_has_a_fault(root: Path, tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "a.png").symlink_to(tmp_path / "nowhere.png")
    ((sample,),) = [list(shard.read()) for shard in folder_shards(tmp_path)]
    assert "No such file" in sample.fault


def test_a_folder_without_classes_or_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no sub-folders; one per class is needed"):
        folder_shards(tmp_path)
    (tmp_path / "ant").mkdir()
    with pytest.raises(ConfigError, match=r"no pictures \(\.jpg, .*in its sub-folders"):
        folder_shards(tmp_path)
