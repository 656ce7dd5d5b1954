"""The whole service as a user starts it, with the bundled model: drawing, tokens, kills, a clean end."""

from __future__ import annotations

import base64
import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from models.bundle import open_bundle
from models.drawing import draw
from models.runtime.torch_runtime import TorchRuntime
from service.bench.running import free_port
from service.jobs.redis_server import RedisServer
from tests.gateway_harness import until
from tests.service_fixtures import Running, serving, start

SEEDS = (7, 8)
STEPS = 48
STREAM = {"stream": True}


@pytest.fixture(scope="module")
def runtime() -> TorchRuntime:
    return TorchRuntime(open_bundle("fruit"), device="cpu")


def expected_grids(runtime: TorchRuntime, label: int, steps: int) -> list[list[list[int]]]:
    """Tokens of the plain loop, without service."""
    manifest = open_bundle("fruit").manifest
    sampling = type(manifest.sampling)(**{**vars(manifest.sampling), "steps": steps})
    grids: list[list[list[int]]] = draw(runtime, manifest, sampling, [label] * len(SEEDS), SEEDS).tolist()
    return grids


def agreement(one: list[list[list[int]]], other: list[list[list[int]]]) -> float:
    """Share of equal tokens: floating-point ties may differ between batch sizes and thread counts."""
    return float((np.array(one) == np.array(other)).mean())


def test_a_picture_has_the_tokens_that_the_plain_loop_draws(service: Running, runtime: TorchRuntime) -> None:
    body = {"class_id": 3, "n": 2, "seed": SEEDS[0], "steps": 16, "format": "tokens"}
    answer = service.client.post("/generate", json=body).json()
    grids = [image["indices"] for image in answer["images"]]
    assert agreement(grids, expected_grids(runtime, 3, 16)) > 0.99


def test_the_same_seed_gives_the_same_picture_and_another_seed_another_one(service: Running) -> None:
    def picture(seed: int) -> bytes:
        body = {"class_name": "strawberry", "seed": seed, "steps": 8}
        reply = service.client.post("/generate", json=body, headers={"Accept": "image/png"})
        assert reply.headers["content-type"] == "image/png"
        with Image.open(io.BytesIO(reply.content)) as image:
            assert image.size == (64, 64)
        return reply.content

    assert picture(1) == picture(1)
    assert picture(1) != picture(2)


def test_tokens_and_pictures_over_http_are_those_of_the_model_itself(
    service: Running, runtime: TorchRuntime
) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    headers = {"Content-Type": "image/png"}
    tokens = service.client.post("/tokenize", content=file.getvalue(), headers=headers).json()
    indices = runtime.encode(pixels[None])
    assert (np.array(tokens["indices"]) == indices[0]).mean() > 0.99
    back = service.client.post("/detokenize", json={"indices": indices[0].tolist()}).json()
    with Image.open(io.BytesIO(base64.b64decode(back["images"][0]["b64"]))) as image:
        difference = np.asarray(image).astype(int) - runtime.decode(indices)[0]
    assert np.abs(difference).max() <= 1


@pytest.mark.shared
def test_hostile_files_get_the_answers_of_their_manifest_and_the_service_lives_on(
    service: Running, shared_data: Path
) -> None:
    folder = shared_data / "data" / "hostile"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    before = {worker["pid"] for worker in service.workers()}
    for entry in files:
        name = entry["file"]
        data = (folder / name).read_bytes()
        reply = service.client.post("/tokenize", content=data, headers={"Content-Type": "image/png"})
        codes = {"decode": {200}, "reject": {413, 415, 422}, "either": {200, 413, 415, 422}}[entry["expect"]]
        assert reply.status_code in codes, (name, reply.status_code, reply.text[:200])
        if reply.status_code != 200:
            assert "Traceback" not in reply.text
            assert reply.json()["error"]["message"]
    assert {worker["pid"] for worker in service.workers()} == before


def test_two_requests_at_once_share_the_steps(service: Running) -> None:
    with httpx.Client(base_url=service.url, timeout=60) as other:
        started = time.monotonic()
        body = {"class_id": 1, "steps": 64, "stream": True}
        with service.client.stream("POST", "/generate", json=body) as long:
            events = long.iter_lines()
            assert any("progress" in line for line in events)
            short = other.post("/generate", json={"class_id": 2, "steps": 2, "format": "tokens"})
            assert short.status_code == 200
            rest = list(events)
        assert any('"step":63' in line.replace(" ", "") for line in rest), (
            "the short one waited for the long one"
        )
        assert time.monotonic() - started < 60


def test_a_worker_killed_in_mid_picture_costs_no_request_and_no_token(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path / "state")
    redis.start()
    port, log = free_port(), tmp_path / "log"
    environment = {"MASKBIT_REDIS_URL": redis.url, "MASKBIT_LEASE_S": "2", "OMP_NUM_THREADS": "1"} | {
        "MASKBIT_DETERMINISTIC": "strict"
    }
    processes = [
        start("gateway", "--port", str(port), log=log, **environment),
        start("worker", log=log, **environment),
    ]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            until(lambda: all(p.poll() is None for p in processes) and _ready(client), 60)
            body = {"class_id": 5, "n": 2, "seed": SEEDS[0], "steps": STEPS, "format": "tokens"} | STREAM
            undisturbed = client.post("/generate", json=body | {"stream": False}).json()["images"]
            with client.stream("POST", "/generate", json=body) as reply:
                lines = reply.iter_lines()
                assert any('"step":2,' in line.replace(" ", "") for line in lines)
                processes[1].send_signal(signal.SIGKILL)
                processes.append(start("worker", log=log, **environment))
                images = [json.loads(line[5:]) for line in lines if "indices" in line]
        # Strict mode: equal bit by bit to the same request without a kill.
        assert [image["indices"] for image in images] == [image["indices"] for image in undisturbed]
        assert "took over job" in log.read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()
        redis.stop()


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def test_dead_parts_are_started_again_and_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    with serving(tmp_path, "--runtime", "noop", MASKBIT_LEASE_S="2") as running:
        parts = psutil.Process(running.process.pid).children(recursive=True)
        assert len(parts) >= 3
        for part in parts:
            part.send_signal(signal.SIGKILL)
        psutil.wait_procs(parts, 10)
        until(lambda: _ready(running.client), 30)
        body = {"class_id": 0, "steps": 2, "format": "tokens"}
        assert running.client.post("/generate", json=body).status_code == 200
        parts = psutil.Process(running.process.pid).children(recursive=True)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(40) == 0
        assert psutil.wait_procs(parts, 5)[1] == []
    assert "Traceback" not in running.log.read_text(errors="replace")


def test_accepted_jobs_survive_a_kill_of_the_whole_service(tmp_path: Path) -> None:
    with serving(tmp_path, "--runtime", "noop") as running:
        body = {"kind": "generate", "class_id": 0, "steps": 2, "seed": 3, "format": "tokens"}
        location = running.client.post("/jobs", json=body).headers["location"]
        until(lambda: running.client.get(location).status_code == 200)
        before = running.client.get(location).json()["result"]
        parts = psutil.Process(running.process.pid).children(recursive=True)
        maskbit = [part for part in parts if "maskbit_cli" in part.cmdline()]
        assert len(maskbit) == 2
        running.process.kill()
        # Worker and gateway end by themselves when their supervisor is gone; Redis later or for the next.
        assert psutil.wait_procs(maskbit, 40)[1] == []
    with serving(tmp_path, "--runtime", "noop") as running:
        assert running.client.get(location).json()["result"] == before


def other_bundle(folder: Path) -> Path:
    """The bundled model under another name, without weights: the no-op runtime reads none."""
    manifest = replace(open_bundle("fruit").manifest, name="other", files={})
    folder.mkdir()
    (folder / "bundle.json").write_text(manifest.to_json())
    return folder


def test_several_models_are_served_by_a_worker_each_and_one_may_be_dead(tmp_path: Path) -> None:
    other, ports = other_bundle(tmp_path / "other"), free_port()
    bundles = ("--bundle", "fruit", "--bundle", str(other), "--runtime", "noop")
    with serving(tmp_path, *bundles, MASKBIT_METRICS_PORT=str(ports), MASKBIT_LEASE_S="2") as running:
        text = until(
            lambda: (t := running.log.read_text()) and t.count("Metrics of the worker") == 2 and t, 60
        )
        assert f"Metrics of the worker of other: http://127.0.0.1:{ports + 1}/metrics" in text
        for k, name in enumerate(("fruit", "other")):
            answer = running.client.post("/generate", json={"class_id": 0, "steps": 2, "model": name}).json()
            assert answer["model"] == name
            metrics = httpx.get(f"http://127.0.0.1:{ports + k}/metrics").text
            assert f'maskbit_model_info{{bundle="{answer["bundle"]}"' in metrics
        (other / "bundle.json").rename(other / "gone.json")
        (pid,) = (one["pid"] for one in running.workers() if str(one["bundle"]).startswith("other@"))
        psutil.Process(int(str(pid))).kill()
        until(lambda: running.client.get("/readyz").json()["models"] == {"fruit": True, "other": False}, 20)
        until(lambda: "the worker of other ended with code 2" in running.log.read_text(), 30)
        assert running.client.post("/generate", json={"class_id": 0, "steps": 2}).status_code == 200
        refused = running.client.post("/generate", json={"class_id": 0, "model": "other"})
        assert (refused.status_code, "'other'" in refused.text) == (503, True)
        (other / "gone.json").rename(other / "bundle.json")
        until(lambda: running.client.get("/readyz").json()["models"]["other"], 40)


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "maskbit_cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_cannot_start_says_why_in_one_line(tmp_path: Path, service: Running) -> None:
    cases = {
        ("serve", "--port", str(service.port), "--state-dir", str(tmp_path)): "cannot listen",
        ("serve", "--bundle", "/nowhere"): "no bundle '/nowhere'",
        ("worker",): "MASKBIT_REDIS_URL",
        ("worker", "--runtime", "gpu"): "runtime",
        ("worker", "--bundle", "fruit,fruit", "--redis-url", "redis://x"): "a worker serves one bundle",
        ("serve", "--bundle", "fruit", "--bundle", "fruit"): "are both called 'fruit'",
        ("gateway", "--bundle", "fruit,fruit", "--redis-url", "redis://x"): "are both called 'fruit'",
        ("gateway", "--port", "0x"): "--port",
        ("gateway", "--redis-url", "foo"): "setting redis_url: it must begin with redis://",
        ("serve", "--port", str(free_port()), "--state-dir", "/proc/x"): "--state-dir",
        ("serve", "--port", str(free_port()), "--state-dir", __file__): "--state-dir",
    }
    for arguments, words in cases.items():
        result = run_cli(*arguments)
        assert result.returncode == 2, (arguments, result.stderr)
        assert words in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_a_damaged_bundle_stops_the_start_with_a_reason(tmp_path: Path) -> None:
    source = open_bundle("fruit").path
    copy = tmp_path / "fruit"
    copy.mkdir()
    for file in source.iterdir():
        data = file.read_bytes()
        (copy / file.name).write_bytes(data[:-100] if file.name.startswith("generator") else data)
    place = ("--port", str(free_port()), "--state-dir", str(tmp_path / "state"))
    process = start("serve", "--bundle", str(copy), *place, log=tmp_path / "log")
    assert process.wait(60) == 2
    text = (tmp_path / "log").read_text()
    assert "is damaged" in text
    assert "Traceback" not in text
