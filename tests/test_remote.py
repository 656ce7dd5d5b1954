from __future__ import annotations

import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.errors import ConfigError
from tests.file_server import FileServer, serve_files
from training.data.remote import BUFFER_BYTES, HttpStream, beside, open_bytes, path_of

SIZE = 3 * BUFFER_BYTES + 17


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    (tmp_path / "data.bin").write_bytes(os.urandom(SIZE))
    with serve_files(tmp_path) as files:
        yield files


def fetch(server: FileServer, name: str = "data.bin", attempts: int = 3) -> bytes:
    with io.BufferedReader(HttpStream(f"{server.url}/{name}", attempts=attempts, pause_s=0)) as stream:
        return stream.read()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_continued_where_it_stopped(server: FileServer, ranges: bool) -> None:
    server.ranges = ranges
    server.cuts = [1000, BUFFER_BYTES + 1000, 2 * BUFFER_BYTES]
    assert fetch(server) == (server.folder / "data.bin").read_bytes()
    asked = [request.partition(" ")[2] for request in server.requests]
    assert asked[:2] == ["", "bytes=1000-"]


def test_a_server_that_is_busy_is_asked_again(server: FileServer) -> None:
    server.codes = [503, 429]
    assert len(fetch(server)) == SIZE
    assert len(server.requests) == 3


def test_a_wrong_address_is_an_error_at_once(server: FileServer) -> None:
    with pytest.raises(ConfigError, match=r"none\.bin: cannot be read \(404 Not Found\)"):
        fetch(server, "none.bin")
    assert len(server.requests) == 1


def test_a_server_that_stays_broken_is_given_up_by_name(server: FileServer) -> None:
    server.codes = [500] * 3
    with pytest.raises(ConfigError, match=r"data\.bin: cannot be read \(given up after 3 attempts: .*500"):
        fetch(server)
    server.cuts = [0, 0, 0]
    with pytest.raises(ConfigError, match=r"data\.bin: .*connection closed after 0 of"):
        fetch(server)


def test_a_server_that_is_not_there_is_an_error_by_name() -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x.tar"
        with pytest.raises(ConfigError, match=r"/x\.tar: cannot be read \(given up after 2 attempts"):
            HttpStream(url, attempts=2, pause_s=0)


def test_a_silent_server_runs_into_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.tar"
        with pytest.raises(ConfigError, match=r"x\.tar: .*timed out"):
            HttpStream(url, timeout_s=0.05, attempts=1)


def test_a_file_that_changes_while_it_is_read_is_an_error(server: FileServer) -> None:
    server.cuts = [1000]
    with io.BufferedReader(HttpStream(f"{server.url}/data.bin", pause_s=0), 100) as stream:
        stream.read(100)
        (server.folder / "data.bin").write_bytes(b"x" * (SIZE + 1))
        with pytest.raises(ConfigError, match=r"data\.bin: changed while it was read"):
            stream.read()


def test_paths_and_urls_of_fsspec_open_alike(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"content")
    for name in (str(tmp_path / "a.bin"), f"file://{tmp_path}/a.bin"):
        with open_bytes(name) as stream:
            assert stream.read() == b"content"
        with pytest.raises(ConfigError, match=r"none\.bin: cannot be read \(No such file"):
            open_bytes(name.replace("a.bin", "none.bin"))


def test_a_scheme_that_nobody_knows_is_an_error_by_name() -> None:
    with pytest.raises(ConfigError, match=r"xyz://bucket/a\.tar: cannot be read \(Protocol not known"):
        open_bytes("xyz://bucket/a.tar")


def test_a_file_beside_another_keeps_the_query() -> None:
    assert beside("data/a.tar", "classes.json") == "data/classes.json"
    assert beside("a.tar", "classes.json") == "classes.json"
    assert beside("https://h/d/a.tar?key=1/2", "c.json") == "https://h/d/c.json?key=1/2"
    assert path_of("https://h/d/a.tar?key=1/2.x") == "/d/a.tar"
