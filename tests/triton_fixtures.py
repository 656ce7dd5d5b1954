"""A real Triton for tests, in an environment of its own: `python -m tests.triton_fixtures` prepares it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import uuid
import venv
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from models.bundle import MANIFEST, Bundle, open_bundle
from service.bench.running import free_port
from tests.gateway_harness import until

# The Python backend of this Triton was built for NumPy 1.
PACKAGES = ("nvidia-pytriton==0.7.0", "numpy==1.26.4", "onnxruntime==1.32.0")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
DONE = "installed.txt"
INSTALL_TIMEOUT_S, START_TIMEOUT_S, KILL_TIMEOUT_S = 600, 60.0, 20.0
FOLDER = Path("~/.cache/maskbit/triton").expanduser() / f"{PACKAGES[0].replace('==', '-')}-py{PYTHON}"


def prepare_environment() -> Path:
    """The virtual environment with Triton, made from PyPI once and kept in a cache folder."""
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with FOLDER.with_name(f"{FOLDER.name}.lock").open("w") as lock:
        # Another run may be at it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_prepared():
            _install()
    return FOLDER


def is_prepared() -> bool:
    """Whether the environment is whole and of these packages."""
    done = FOLDER / DONE
    return done.is_file() and done.read_text() == str(PACKAGES)


def _install() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    venv.create(FOLDER)
    pip = [sys.executable, "-m", "pip", "--python", str(FOLDER / "bin" / "python"), "install", "--quiet"]
    # What the packages depend on is of no use to the server.
    subprocess.run([*pip, "--no-deps", *PACKAGES], check=True, timeout=INSTALL_TIMEOUT_S)
    _make_runnable(_packages(FOLDER) / "pytriton" / "tritonserver")
    (FOLDER / DONE).write_text(str(PACKAGES))


def _packages(environment: Path) -> Path:
    return environment / "lib" / f"python{PYTHON}" / "site-packages"


def _make_runnable(server: Path) -> None:
    """Put the Python backend together; a wheel keeps no run bits."""
    stub = shutil.copy(
        server / "python_backend_stubs" / PYTHON / "triton_python_backend_stub",
        server / "backends" / "python",
    )
    for program in (Path(stub), server / "bin" / "tritonserver"):
        program.chmod(0o755)


class Triton:
    """A server on loopback ports of its own, which it keeps when it is started again."""

    def __init__(self, environment: Path, repository: Path, log: Path, *options: str) -> None:
        self.environment, self.repository, self.log, self.options = environment, repository, log, options
        self.programs = environment / "bin"
        self.http_port, self.grpc_port = free_port(), free_port()
        self.prefix = f"triton-test-{uuid.uuid4().hex[:8]}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def urls(self) -> dict[str, str]:
        """Addresses by scheme."""
        return {"grpc": f"grpc://127.0.0.1:{self.grpc_port}", "http": f"http://127.0.0.1:{self.http_port}"}

    def launch(self) -> None:
        """Start without waiting."""
        packages = _packages(self.environment)
        server = packages / "pytriton" / "tritonserver"
        libraries = f"{packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
        # The Python backend takes its packages from the first `python3` on PATH.
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    server / "bin" / "tritonserver",
                    f"--model-repository={self.repository}",
                    f"--backend-directory={server / 'backends'}",
                    f"--backend-config=python,shm-region-prefix-name={self.prefix}",
                    *("--http-address=127.0.0.1", f"--http-port={self.http_port}"),
                    *("--grpc-address=127.0.0.1", f"--grpc-port={self.grpc_port}"),
                    *("--allow-metrics=false", "--allow-gpu-metrics=false"),
                    *self.options,
                ],
                env={**kept, "LD_LIBRARY_PATH": libraries, "PATH": path},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start(self) -> None:
        """Start, and wait until all models are ready."""
        self.launch()
        until(lambda: self.ready or not self.alive, START_TIMEOUT_S)
        assert self.alive, self.log.read_text()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.urls['http']}/v2/health/ready").status_code == 200
        return False

    def load(self, model: str) -> None:
        """Take over what has changed in a model, if the server was started so that it must be told."""
        httpx.post(f"{self.urls['http']}/v2/repository/models/{model}/load", timeout=60).raise_for_status()

    def kill(self) -> None:
        """SIGKILL, for the processes of the Python backend too."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(KILL_TIMEOUT_S)
        for left in Path("/dev/shm").glob(f"{self.prefix}*"):
            left.unlink()


@pytest.fixture(scope="session")
def triton_environment() -> Path:
    """As it was prepared before the tests: on a slow line that takes longer than a test may."""
    if not is_prepared():
        pytest.skip("there is no Triton; python -m tests.triton_fixtures gets it from PyPI")
    return FOLDER


@pytest.fixture(scope="session")
def triton_repository(exported_tiny: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's repository for the Python backend; read it, but do not change it."""
    from export.triton_repository import write_repository
    from export.triton_sources import Choice

    folder = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(exported_tiny, folder, Choice("python", "fp32"))
    return folder


@pytest.fixture(scope="session")
def triton(triton_environment: Path, triton_repository: Path) -> Iterator[Triton]:
    """One server for all tests that leave it running."""
    server = Triton(triton_environment, triton_repository, triton_repository.parent / "log")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_triton(triton_environment: Path, triton_repository: Path, tmp_path: Path) -> Iterator[Triton]:
    """A server that the test may kill and start again."""
    server = Triton(triton_environment, triton_repository, tmp_path / "log")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def revised_tiny(exported_tiny: Bundle, tmp_path: Path) -> Bundle:
    """Another revision of the tiny bundle, of the same weights."""
    folder = tmp_path / "revised"
    shutil.copytree(exported_tiny.path, folder)
    other = replace(exported_tiny.manifest, licence="MIT")
    (folder / MANIFEST).write_text(other.to_json())
    bundle = open_bundle(str(folder))
    record = folder / "onnx" / "export.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"bundle": bundle.ref}))
    return bundle


if __name__ == "__main__":
    try:
        print(prepare_environment())
    except (OSError, subprocess.SubprocessError) as exc:
        sys.exit(f"Triton cannot be had from PyPI: {exc}")
