from __future__ import annotations

import io
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigError
from tests.file_server import FileServer, serve_files
from tests.training_fixtures import picture_bytes, sample_files, write_shard, write_tar
from training.data.tar_file import MAX_NAME_BYTES
from training.data.tar_shard import MAX_PICTURE_BYTES, TarShard, split_name

COUNT = 11


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    write_shard(path, range(COUNT))
    return path


@pytest.fixture
def server(shard: Path) -> Iterator[FileServer]:
    with serve_files(shard.parent) as files:
        yield files


@pytest.mark.shared
def test_samples_are_those_that_the_standard_library_finds(shared_data: Path) -> None:
    path = shared_data / "data" / "fruit" / "val.tar"
    expected: dict[str, dict[str, bytes]] = defaultdict(dict)
    with tarfile.open(path) as tar:
        for entry in tar:
            stem, _, suffix = entry.name.partition(".")
            expected[stem][suffix] = tar.extractfile(entry).read()  # type: ignore[union-attr]
    samples = list(TarShard(str(path)).read())
    assert [sample.index for sample in samples] == list(range(len(expected)))
    assert [(s.key, s.image, s.label) for s in samples] == [
        (key, files["webp"], int(files["cls"])) for key, files in expected.items()
    ]


@given(start=st.integers(0, COUNT + 2), step=st.integers(1, COUNT + 2))
def test_a_read_from_the_middle_with_a_step_is_a_slice_of_the_whole(
    shard: Path, start: int, step: int
) -> None:
    reader = TarShard(str(shard))
    assert list(reader.read(start, step)) == list(reader.read())[start::step]


def test_a_shard_at_a_url_gives_the_same_samples(shard: Path, server: FileServer) -> None:
    local, remote = TarShard(str(shard)), TarShard(f"{server.url}/a.tar?token=1")
    for start, step in ((0, 1), (3, 2)):
        expected = [(s.index, s.key, s.image, s.label) for s in local.read(start, step)]
        assert [(s.index, s.key, s.image, s.label) for s in remote.read(start, step)] == expected


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_links_and_folders_are_understood(tmp_path: Path, form: int) -> None:
    folder = "/".join(["schöne" * 4] * (3 if form == tarfile.USTAR_FORMAT else 30))
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        inside = tarfile.TarInfo(folder)
        inside.type = tarfile.DIRTYPE
        tar.addfile(inside)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "x" * 90 if form == tarfile.USTAR_FORMAT else "x" * 300
        tar.addfile(link)
        for name, data in (
            ("0.JPG", picture_bytes(1)),
            ("0.cls", b"5\n"),
            ("0.json", b"{}"),
            ("readme", b"hi"),
        ):
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    (sample,) = TarShard(str(path)).read()
    assert (sample.key, sample.image, sample.label) == (f"{folder}/0", picture_bytes(1), 5)


def test_names_are_split_at_the_first_dot_of_the_file() -> None:
    assert split_name("a.b/c.d.JPG") == ("a.b/c", "d.jpg")
    assert split_name("a.b/c")[1] == ""
    assert split_name("a/.hidden")[1] == ""


def test_samples_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    files = [
        ("a.png", picture_bytes(0)),
        ("b.cls", b"1"),
        ("c.png", picture_bytes(1)),
        ("c.cls", b"cat"),
        ("d.png", picture_bytes(2)),
        ("d.cls", b"9" * 30),
        *sample_files(5),
    ]
    write_tar(tmp_path / "a.tar", files)
    samples = list(TarShard(str(tmp_path / "a.tar")).read())
    assert [sample.key for sample in samples] == ["a", "b", "c", "d", "0005"]
    assert "no class number (.cls is b'')" in samples[0].fault
    assert "no picture (webp, jpg" in samples[1].fault
    assert "no class number (.cls is b'cat')" in samples[2].fault
    assert "no class number" in samples[3].fault
    assert samples[4].fault == ""


def test_a_sample_that_is_cut_off_is_named_and_those_before_it_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_shard(path, range(5))
    whole = list(TarShard(str(path)).read())
    with tarfile.open(path) as tar:
        last = tar.getmember("0003.png")
    path.write_bytes(path.read_bytes()[: last.offset_data + 100])
    *sound, cut = TarShard(str(path)).read()
    assert sound == whole[:3]
    assert (cut.key, cut.index) == ("0003", 3)
    assert "the shard ends in the middle of 0003.png: 100 of" in cut.fault


def test_a_name_that_comes_again_begins_another_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*sample_files(0), *sample_files(0)])
    assert [sample.index for sample in TarShard(str(tmp_path / "a.tar")).read()] == [0, 1]


@pytest.mark.parametrize("place", [0, 2, 5])
def test_garbage_is_an_error_that_names_the_shard_wherever_it_stands(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a.tar"
    write_shard(path, range(5))
    with tarfile.open(path) as tar:
        header = tar.getmembers()[place].offset
    data = bytearray(path.read_bytes())
    data[header : header + 512] = b"garbage " * 64
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"a\.tar: not a sound tar file \("):
        list(TarShard(str(path)).read())


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header with a valid checksum, whose size is in base 256 where octal digits do not hold it."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def hostile_shard(path: Path, part: bytes) -> TarShard:
    """Two samples, and `part` between them."""
    write_shard(path, [0])
    first = path.read_bytes().rstrip(b"\0")
    write_shard(path, [1])
    path.write_bytes(first + b"\0" * (-len(first) % 512) + part + path.read_bytes())
    return TarShard(str(path))


@pytest.mark.parametrize(
    "kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE]
)
@pytest.mark.parametrize("size", [2**41, 2**62, 2**70, -1, -512])
def test_sizes_that_no_file_has_are_refused_in_one_line(tmp_path: Path, size: int, kind: bytes) -> None:
    shard = hostile_shard(tmp_path / "a.tar", header("x.png", size, kind))
    with pytest.raises(
        ConfigError, match=rf"a\.tar: not a sound tar file \(a header claims {size} bytes"
    ) as error:
        list(shard.read())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_name_of_more_than_a_megabyte_is_refused(tmp_path: Path, kind: bytes) -> None:
    shard = hostile_shard(tmp_path / "a.tar", header("x.png", MAX_NAME_BYTES + 1, kind))
    with pytest.raises(ConfigError, match="claims 1048577 bytes; allowed are 0 to 1048576"):
        list(shard.read())


@pytest.mark.parametrize(
    "records", [b"1 x=y\n", b"9" * 5000 + b" path=x\n", b"0 path=x\n", b"-9 path=x\n", b"12path=x.png\n"]
)
def test_damaged_pax_records_are_refused(tmp_path: Path, records: bytes) -> None:
    padded = records + b"\0" * (-len(records) % 512)
    shard = hostile_shard(tmp_path / "a.tar", header("x", len(records), tarfile.XHDTYPE) + padded)
    with pytest.raises(ConfigError, match="damaged pax header"):
        list(shard.read())


def test_a_megabyte_of_pax_records_is_read(tmp_path: Path) -> None:
    records = b"6 a=b\n" * (MAX_NAME_BYTES // 6 - 10) + b"15 path=0.webp\n"
    content = records + b"\0" * (-len(records) % 512)
    shard = hostile_shard(tmp_path / "a.tar", header("x", len(records), tarfile.XHDTYPE) + content)
    assert [sample.key for sample in shard.read()] == ["0000", "0", "0001"]


@pytest.mark.parametrize("size", [MAX_PICTURE_BYTES + 1, 2**40])
def test_a_picture_that_is_too_large_is_a_faulty_sample(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.tar"
    shard = hostile_shard(path, header("big.png", size))
    sound, faulty = shard.read()
    assert (sound.key, sound.fault) == ("0000", "")
    assert faulty.key == "big"
    assert faulty.fault == f"big.png has {size} bytes; allowed are {MAX_PICTURE_BYTES}"


def test_samples_behind_a_picture_that_is_too_large_are_read(tmp_path: Path) -> None:
    path, size = tmp_path / "a.tar", MAX_PICTURE_BYTES + 512
    with path.open("wb") as file:
        file.write(header("big.png", size))
        file.seek(size, 1)  # a hole, which takes no room on disk
        write_shard(tmp_path / "b.tar", [1])
        file.write((tmp_path / "b.tar").read_bytes())
    faulty, sound = TarShard(str(path)).read()
    assert (faulty.index, sound.index, sound.image) == (0, 1, picture_bytes(1))
    assert "big.png has" in faulty.fault


def test_an_empty_file_and_a_missing_one_are_errors_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    with pytest.raises(ConfigError, match=r"a\.tar: not a sound tar file \(empty file\)"):
        list(TarShard(str(tmp_path / "a.tar")).read())
    with pytest.raises(ConfigError, match=r"b\.tar: cannot be read \(No such file"):
        list(TarShard(str(tmp_path / "b.tar")).read())
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory"):
        list(TarShard(str(tmp_path)).read())
