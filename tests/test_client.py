"""`maskbit generate --server`: large sets through a running service."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from models.bundle import Bundle
from models.errors import InputError
from service.bench.running import free_port
from service.client import remote as remote_module
from service.client.picture_set import PictureSet, Portion, SetPlan, read_plan
from service.client.remote import Remote
from service.errors import Unavailable
from tests.gateway_harness import FakeWorker, Gateway, file_of, gateway_running, until
from tests.service_fixtures import Running

NAMES = ("apple", "sweet/sour cherry", "fig")


def command(url: str, out: Path, *more: str) -> list[str]:
    place = ("--server", url, "--out", str(out))
    return [sys.executable, "-m", "maskbit_cli", "generate", *place, *more]


def run(url: str, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(url, out, *more), capture_output=True, text=True, timeout=100, check=False)


def interruptible(words: list[str]) -> subprocess.Popen[str]:
    """A process that hears SIGINT, also where the tests themselves run in the background."""
    restored = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=restored)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def test_a_set_is_what_single_requests_draw(gateway: Gateway, worker: FakeWorker, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{gateway.port}"
    done = run(url, tmp_path, "--classes", "0-1,4", "--per-class", "11", "--seed", "5")
    assert done.returncode == 0, done.stderr
    files = files_in(tmp_path)
    assert len(files) == 33
    assert {name.partition("/")[0] for name in files} == {"000-apple", "001-banana", "004-strawberry"}
    assert files["004-strawberry/15.png"] == file_of(15, "png")


def test_an_interrupted_set_goes_on_where_it_stopped(
    gateway: Gateway, worker: FakeWorker, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{gateway.port}"
    wish = ("--classes", "0-4", "--per-class", "16", "--parallel", "1")
    worker.gate.clear()
    first = interruptible(command(url, tmp_path, *wish))
    until(lambda: worker.claimed, 30)
    worker.gate.set()
    until(lambda: len(files_in(tmp_path)) >= 16, 30)
    first.send_signal(signal.SIGINT)
    _, words = first.communicate(timeout=30)
    assert first.returncode == 130
    assert "the same command goes on" in words
    drawn = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert 16 <= len(drawn) < 80
    # Without --seed: the set keeps its own.
    assert run(url, tmp_path, *wish).returncode == 0
    assert len(files_in(tmp_path)) == 80
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in drawn.items())


def test_an_interrupt_waits_for_no_answer(gateway: Gateway, worker: FakeWorker, tmp_path: Path) -> None:
    worker.gate.clear()
    wish = command(f"http://127.0.0.1:{gateway.port}", tmp_path, "--classes", "0-1", "--parallel", "2")
    client = interruptible(wish)
    until(lambda: worker.claimed, 30)
    client.send_signal(signal.SIGINT)
    # The closed connection cancels the job that the worker still holds.
    until(lambda: worker.stopped, 10)
    client.communicate(timeout=30)
    assert client.returncode == 130


def test_a_gateway_that_is_replaced_costs_no_picture(
    plain_bundle: Bundle, gateway_redis: str, tmp_path: Path
) -> None:
    port = free_port()
    with gateway_running(plain_bundle, gateway_redis, port=port) as first:
        worker = FakeWorker(first, gateway_redis)
        worker.start()
        wish = command(
            f"http://127.0.0.1:{port}", tmp_path, "--classes", "0-4", "--n", "16", "--parallel", "2"
        )
        client = subprocess.Popen(wish, stderr=subprocess.PIPE, text=True)
        until(lambda: files_in(tmp_path), 30)
    with gateway_running(plain_bundle, gateway_redis, port=port):
        _, words = client.communicate(timeout=60)
        worker.stop()
    assert client.returncode == 0, words
    assert len(files_in(tmp_path)) == 80


def test_the_real_service_draws_a_set(service: Running, tmp_path: Path) -> None:
    done = run(service.url, tmp_path, "--classes", "0-15", "--n", "1", "--steps", "1", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert len(files_in(tmp_path)) == 16
    assert "16 pictures" in done.stdout


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--class", "strawbery"), "did you mean strawberry"),
        (("--classes", "3-9"), "allowed are 0 to 4"),
        (("--classes", "3-1"), "write 1-3"),
        (("--class", "fig", "--device", "cpu"), "the service's own"),
        (("--class", "0", "--model", "other"), "model is 'other'"),
        (("--class", "0", "--steps", "99999"), "steps is 99999"),
    ],
)
def test_wrong_wishes_are_one_sentence(
    gateway: Gateway, worker: FakeWorker, tmp_path: Path, more: tuple[str, ...], words: str
) -> None:
    done = run(f"http://127.0.0.1:{gateway.port}", tmp_path / "set", *more)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    done = run("localhost:8000", tmp_path, "--class", "0")
    assert done.returncode == 2
    assert "--server" in done.stderr


def test_a_folder_with_another_set_is_refused(tmp_path: Path) -> None:
    PictureSet(tmp_path, SetPlan("tiny@1", 5, 3, {"steps": 4}), [0], NAMES).begin()
    assert read_plan(tmp_path) == SetPlan("tiny@1", 5, 3, {"steps": 4})
    # More pictures of each class are the same set, only larger.
    PictureSet(tmp_path, SetPlan("tiny@1", 5, 9, {"steps": 4}), [0], NAMES).begin()
    for other in (
        SetPlan("tiny@2", 5, 3, {"steps": 4}),
        SetPlan("tiny@1", 6, 3, {"steps": 4}),
        SetPlan("tiny@1", 5, 3, {}),
    ):
        with pytest.raises(InputError, match="was begun with"):
            PictureSet(tmp_path, other, [0], NAMES).begin()


def test_pictures_of_other_weights_do_not_enter_a_set(tmp_path: Path) -> None:
    pictures = PictureSet(tmp_path, SetPlan("tiny@1", 5, 3, {}), [0], NAMES)
    pictures.begin()
    picture = {"class_id": 0, "seed": 5, "b64": "AAAA"}
    with pytest.raises(InputError, match="draws with tiny@2 now, this set was begun with tiny@1"):
        pictures.save({"bundle": "tiny@2", "images": [picture]})
    assert files_in(tmp_path) == {}
    pictures.save({"bundle": "tiny@1", "images": [picture]})
    assert files_in(tmp_path) == {"000-apple/5.png": bytes(3)}


def test_portions_cover_what_is_missing_and_no_more(tmp_path: Path) -> None:
    pictures = PictureSet(tmp_path, SetPlan("tiny@1", 10, 7, {}), [1, 2, 1], NAMES)
    pictures.begin()
    for seed in (12, 16):
        (tmp_path / "001-sweet_sour cherry" / f"{seed}.png").touch()
    assert list(pictures.missing(3)) == [
        *(Portion(1, 10, 2), Portion(1, 13, 3)),
        *(Portion(2, 10, 3), Portion(2, 13, 3), Portion(2, 16, 1)),
    ]


class Moody(BaseHTTPRequestHandler):
    """Answers with the statuses that a test laid out, then with what was asked for."""

    moods: ClassVar[list[int]] = []
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Authorization", ""))
        status = self.moods.pop(0) if self.moods else 200
        words = {200: {"model": "tiny"}}.get(status, {"error": {"message": f"mood {status}"}})
        text = json.dumps(words).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def moody() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Moody.moods, Moody.asked = [], []
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_busy_service_is_asked_again_with_the_key(moody: str) -> None:
    Moody.moods = [503, 429, 504]
    remote = Remote(moody, "secret")
    assert remote.info(None) == {"model": "tiny"}
    assert Moody.asked == ["Bearer secret"] * 4
    remote.close()


def test_patience_ends(moody: str) -> None:
    Moody.moods = [503] * 1000
    remote = Remote(moody, None, patience_s=0.5)
    with pytest.raises(Unavailable, match="mood 503"):
        remote.info(None)
    remote.close()
    nobody = Remote(f"http://127.0.0.1:{free_port()}", None, patience_s=0.3)
    with pytest.raises(Unavailable, match="did not answer"):
        nobody.info(None)
    nobody.close()


def test_the_first_longer_pause_of_a_spell_is_told_once(moody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    remote = Remote(moody, None, patience_s=10, on_wait=told.append)
    Moody.moods = [503] * 3
    remote.info(None)
    assert told == []
    monkeypatch.setattr(remote_module, "_TOLD_PAUSE_S", -1.0)
    for spell in (1, 2):
        Moody.moods = [503] * 3
        remote.info(None)
        wanted = "the service is busy or away (mood 503); trying again for up to 10 s"
        assert told == [wanted] * spell
    remote.close()


def test_an_answer_that_took_long_costs_no_patience(moody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "time", SimpleNamespace(monotonic=count(step=1000).__next__))
    Moody.moods = [503]
    remote = Remote(moody, None, patience_s=600)
    assert remote.info(None) == {"model": "tiny"}
    remote.close()


@pytest.mark.parametrize("key", ["secret\r", "se\ncret", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InputError, match="API key") as caught:
        Remote("http://127.0.0.1:1", key)
    assert key not in str(caught.value)


def test_what_is_refused_is_not_asked_again(moody: str) -> None:
    Moody.moods = [401]
    remote = Remote(moody, None)
    with pytest.raises(InputError, match="mood 401"):
        remote.info(None)
    assert len(Moody.asked) == 1
    remote.close()
