"""The gateway's and the CPU worker's images, built and run for real: with MASKBIT_BUILD_IMAGES=1.

It takes minutes, and the programs that tests/image_builder.py names. `pytest -s` shows the sizes.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from packaging.utils import canonicalize_name
from PIL import Image as Picture
from prometheus_client.parser import text_string_to_metric_families

from service.bench.running import free_port
from service.jobs.redis_server import SAFE_SETTINGS, find_executable
from tests.documents import ROOT
from tests.gateway_harness import until
from tests.image_builder import Container, Image, Yard, missing, pins, requirements_of

pytestmark = pytest.mark.timeout(2400)

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
REVISION = "0123456789abcdef0123456789abcdef01234567"
READY_TIMEOUT_S = 120
_CHOICES = ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    assert not missing(), f"it needs {', '.join(missing())}: apt-get install buildah mmdebstrap, as root"
    yard = Yard(tmp_path_factory.mktemp("images"))
    yield yard
    yard.close()


@pytest.fixture(scope="module")
def images(yard: Yard) -> dict[str, Image]:
    """Both images; their sizes are printed."""
    base = yard.make_base()
    arguments = {"REVISION": REVISION, "VERSION": VERSION}
    built = {
        "gateway": yard.build("gateway", **arguments),
        "worker-cpu": yard.build("worker-cpu", **arguments),
    }
    print(f"\nbase: {base / 1e6:.0f} MB")
    for name, image in built.items():
        own = image.size - base
        print(f"maskbit-{name}: {image.size / 1e6:.0f} MB, of which {own / 1e6:.0f} MB are not the base's")
    return built


@contextmanager
def redis_on(port: int, folder: Path) -> Iterator[None]:
    """A Redis on a loopback port, set up as compose.yaml does."""
    options = {**SAFE_SETTINGS, "port": str(port), "bind": "127.0.0.1", "dir": str(folder), "save": ""}
    process = subprocess.Popen(
        [find_executable(), *(word for name, value in options.items() for word in (f"--{name}", value))],
        stdout=subprocess.DEVNULL,
    )
    try:
        until(lambda: _listens(port))
        yield
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Service:
    """Both containers, on loopback ports of their own."""

    def __init__(self, yard: Yard, images: dict[str, Image], folder: Path, redis_port: int) -> None:
        self.images = images
        self.port = free_port()
        shared = {"MASKBIT_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0", "MASKBIT_HOST": "127.0.0.1"}
        self.gateway = yard.run(
            images["gateway"], folder / "gateway.log", **shared, MASKBIT_PORT=str(self.port)
        )
        self.worker = yard.run(
            images["worker-cpu"],
            folder / "worker.log",
            **shared,
            MASKBIT_METRICS_PORT=str(free_port()),
            MASKBIT_THREADS="1",
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def health(self, part: str) -> subprocess.CompletedProcess[str]:
        """What the image's own health check says."""
        container, image = (
            (self.gateway, self.images["gateway"])
            if part == "gateway"
            else (self.worker, self.images["worker-cpu"])
        )
        return container.execute(*image.health)

    def stop(self) -> tuple[int, int]:
        self.client.close()
        return self.gateway.stop(), self.worker.stop()


@pytest.fixture(scope="module")
def service(
    yard: Yard, images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder, redis_port = tmp_path_factory.mktemp("service"), free_port()
    service = Service(yard, images, folder, redis_port)
    try:
        # Without Redis both live and say what they lack.
        until(lambda: "is not ready" in service.health("gateway").stderr, READY_TIMEOUT_S)
        with redis_on(redis_port, folder):
            until(lambda: _is_healthy(service), READY_TIMEOUT_S)
            yield service
    finally:
        service.stop()


def _is_healthy(service: Service) -> bool:
    for container in (service.gateway, service.worker):
        assert container.process.poll() is None, container.log.read_text()
    return all(service.health(part).returncode == 0 for part in ("worker", "gateway"))


def test_a_picture_is_drawn_and_tokenized_by_the_images(service: Service) -> None:
    body = {"class_name": "strawberry", "seed": 7, "steps": 16}
    drawn = service.client.post("/generate", json=body, headers={"Accept": "image/png"})
    assert drawn.status_code == 200, drawn.text
    with Picture.open(io.BytesIO(drawn.content)) as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))
    told = service.client.post("/tokenize", content=drawn.content, headers={"Content-Type": "image/png"})
    assert told.status_code == 200, told.text
    grid = told.json()["indices"]
    assert len({len(row) for row in grid}) == 1
    done = {
        sample.labels["kind"]: sample.value
        for family in text_string_to_metric_families(service.client.get("/metrics").text)
        for sample in family.samples
        if sample.name == "maskbit_jobs_total" and sample.labels["outcome"] == "done"
    }
    assert (done["generate"], done["tokenize"]) == (1, 1)


@pytest.mark.parametrize("part", ["gateway", "worker"])
def test_a_container_has_neither_root_nor_rights_nor_a_place_to_write(service: Service, part: str) -> None:
    container: Container = getattr(service, part)
    status = container.execute("cat", "/proc/1/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["10001"] * 4
    assert fields["Gid"].split() == ["10001"] * 4
    assert {int(fields[name], 16) for name in fields if name.startswith("Cap")} == {0}
    assert fields["NoNewPrivs"] == "1"
    for path in ("/opt/maskbit/x", "/etc/x", "/x"):
        assert "Read-only file system" in container.execute("touch", path).stderr
    assert container.execute("touch", "/tmp/x").returncode == 0


@pytest.mark.parametrize("name", ["gateway", "worker-cpu"])
def test_an_image_says_what_it_is(images: dict[str, Image], name: str) -> None:
    labels = {key.rpartition(".")[2]: value for key, value in images[name].config["Labels"].items()}
    assert labels["version"] == VERSION
    assert labels["revision"] == REVISION
    assert labels["licenses"] == "Apache-2.0"
    assert labels["title"] == f"maskbit-{name}"


def test_the_gateway_has_no_weights_and_nothing_that_computes(service: Service) -> None:
    found = service.gateway.execute("find", "/opt/maskbit", "-name", "*.safetensors").stdout
    assert found == ""
    for package in ("torch", "onnxruntime", "safetensors"):
        done = service.gateway.execute("python", "-c", f"import {package}")
        assert f"No module named '{package}'" in done.stderr


def test_the_worker_has_no_cuda_and_can_use_onnx_and_triton(service: Service) -> None:
    code = "import torch, onnxruntime, tritonclient.grpc, tritonclient.http; print(torch.version.cuda)"
    done = service.worker.execute("python", "-c", code)
    assert done.stdout == "None\n", done.stderr
    assert (
        "nvidia"
        not in service.worker.execute("sh", "-c", "ls /opt/maskbit/lib/python3*/site-packages").stdout
    )


def test_other_commands_of_an_image_work_too(service: Service) -> None:
    assert service.gateway.execute("maskbit", "--version").stdout == f"maskbit {VERSION}\n"
    assert "[keys.shop]" in service.gateway.execute("maskbit", "keys", "new", "shop").stdout
    inspected = service.worker.execute("maskbit", "inspect", "fruit")
    assert "digests agree" in inspected.stdout, inspected.stderr


def test_a_label_that_lies_about_the_version_fails_the_build(yard: Yard, images: dict[str, Image]) -> None:
    with pytest.raises(AssertionError, match="maskbit --version"):
        yard.build("gateway", VERSION="9.9.9")


def test_containers_end_cleanly_when_they_are_told_to(service: Service) -> None:
    assert service.stop() == (0, 0)


def test_the_packages_of_the_gpu_image_can_be_installed_together(tmp_path: Path) -> None:
    # Older ones download gigabytes to answer this.
    _python(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    python = str(tmp_path / "venv" / "bin" / "python")
    _python(python, "-m", "pip", "install", "--quiet", "pip>=23.3")
    files = ("constraints.txt", "deploy/docker/constraints-gpu.txt")
    # TensorRT's libraries are in an index of NVIDIA's.
    wanted = [one for one in requirements_of("worker-gpu") if not one.startswith("tensorrt")]
    report = _python(
        *(python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"),
        *(part for file in files for part in ("--constraint", str(ROOT / file))),
        *wanted,
    )
    found = {
        canonicalize_name(one["metadata"]["name"]): one["metadata"]["version"]
        for one in json.loads(report)["install"]
    }
    assert {"torch", "onnxruntime-gpu", "nvidia-cudnn-cu13", "nvidia-cuda-runtime"} <= found.keys()
    assert found.items() <= pins(*files).items()


def _python(*command: str) -> str:
    """The output of a command that asks PyPI alone: pip may be set up here for PyTorch without CUDA."""
    kept = {name: value for name, value in os.environ.items() if name not in _CHOICES}
    return subprocess.run(
        command, env={**kept, "PIP_CONFIG_FILE": os.devnull}, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
