import errno
from pathlib import Path

import pytest

from models.errors import ConfigError
from models.whole_file import whole_file, whole_folder, write_whole


def test_a_file_is_there_as_a_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"first")
    with whole_file(path) as stream:
        stream.write(b"second")
        stream.flush()
        assert path.read_bytes() == b"first"
    assert path.read_bytes() == b"second"
    with pytest.raises(ZeroDivisionError), whole_file(path) as stream:
        stream.write(b"third" * (1 // 0))
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".file.partial").write_bytes(b"a longer rest")
    write_whole(tmp_path / "file", b"new")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"new")]


def test_a_full_disk_leaves_the_older_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"old")
    (tmp_path / ".file.partial").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match="file cannot be written: No space left on device"):
        write_whole(tmp_path / "file", b"new")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]


def test_a_folder_takes_the_place_of_an_older_one_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(text: str) -> None:
        with whole_folder(tmp_path / "folder") as folder:
            (folder / "file").write_text(text)

    def content() -> list[tuple[str, str]]:
        return [(path.name, (path / "file").read_text()) for path in tmp_path.iterdir()]

    write("first")
    write("second")
    assert content() == [("folder", "second")]
    # A system without an exchange of two names.
    monkeypatch.setattr("models.whole_file.ctypes.CDLL", lambda *_, **__: None)
    write("third")
    assert content() == [("folder", "third")]
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if (self / "file").read_text() == "fourth":
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="Input/output error"):
        write("fourth")
    assert content() == [("folder", "third")]


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        write_whole(tmp_path / "none" / "file", b"")
