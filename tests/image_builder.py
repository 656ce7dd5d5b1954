"""Builds the images without a Docker engine and runs them: read-only, without root and without capabilities.

Needs root, Linux with overlayfs, and Debian's buildah and mmdebstrap. The base is made of Debian's
packages, since no registry of images is asked; Python's are gathered by pip in a folder beforehand.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from packaging.utils import canonicalize_name

from tests.documents import ROOT

PROGRAMS = ("buildah", "mmdebstrap")
BASE = "localhost/python:3.11-slim-bookworm"
PACKAGES = "--include=python3,python3-pip,python3-venv"
# The project's build, and what Debian's Python 3.11.2 lacks beside the 3.11.16 of the true base.
MORE = ("setuptools", "async-timeout")
BUILD_TIMEOUT_S = 1800
_WHEELS = "/wheels"
_SPACES = ("--mount", "--pid", "--ipc", "--uts")
_UNSHARE = ("unshare", *_SPACES, "--fork", "--kill-child", "--propagation=private")
# The first argument is the root, the others are the command.
_ENTER = """
set -e
mount --bind "$0" "$0"
mount --rbind /dev "$0/dev"
mount -t proc proc "$0/proc"
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs "$0/tmp"
mount -o remount,bind,ro "$0"
exec chroot "$0" "$@"
"""


def dockerfile(image: str) -> Path:
    """Where the image is described."""
    return ROOT / "deploy" / "docker" / f"{image}.Dockerfile"


def requirements_of(image: str) -> list[str]:
    """What its Dockerfile installs beside the project: of extras, and by name."""
    text = dockerfile(image).read_text()
    [extras] = re.findall(r"requirements\.py ([\w ]+) >", text)
    [more] = re.findall(r"--requirement requirements\.txt ?([\w -]*?)(?: \\)?\n", text)
    script = str(ROOT / "deploy/docker/requirements.py")
    return [*_run(sys.executable, script, *extras.split()).splitlines(), *more.split()]


def pins(*files: str) -> dict[str, str]:
    """Versions by package in files such as constraints.txt."""
    lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    found = [line.partition("==") for line in lines if "==" in line]
    return {canonicalize_name(name): version for name, _, version in found}


def missing() -> list[str]:
    """What this machine lacks for it."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    return lacking if os.geteuid() == 0 else ["root", *lacking]


@dataclass(frozen=True)
class Image:
    """A built image: its OCI configuration, and its size in bytes, that of the base included."""

    name: str
    config: Mapping[str, Any]
    health: Sequence[str]
    size: int


class Yard:
    """A store of images and containers in a folder, which `close` leaves behind unmounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._containers: list[str] = []
        places = ("--root", str(folder / "store"), "--runroot", str(folder / "run"))
        self._buildah = ("buildah", *places, "--storage-driver", "overlay")

    def make_base(self) -> int:
        """Make what stands for python:3.11-slim-bookworm; returns its size in bytes."""
        archive, context = self.folder / "base.tar", self.folder / "base"
        context.mkdir()
        _run("mmdebstrap", "--quiet", "--variant=minbase", PACKAGES, "bookworm", str(archive))
        (context / "Dockerfile").write_text(f"FROM scratch\nADD {archive.name} /\n")
        archive.rename(context / archive.name)
        self._call("bud", "--format", "docker", "--tag", BASE, str(context))
        shutil.rmtree(context)
        return self._size(BASE)

    def build(self, name: str, **arguments: str) -> Image:
        """Build the image `name` with the build arguments."""
        wheels = self._gather(requirements_of(name))
        arguments |= {"PYTHON_IMAGE": BASE, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": _WHEELS}
        options = [part for key, value in arguments.items() for part in ("--build-arg", f"{key}={value}")]
        tag = f"localhost/maskbit-{name}"
        self._call(
            *("bud", "--isolation", "chroot", "--format", "docker", "--pull-never", "--volume"),
            *(f"{wheels}:{_WHEELS}:ro", *options, "--file", str(dockerfile(name)), "--tag", tag, str(ROOT)),
        )
        inspected = json.loads(self._call("inspect", "--type", "image", tag))
        health = inspected["Docker"]["config"]["Healthcheck"]["Test"][1:]
        return Image(tag, inspected["OCIv1"]["config"], health, self._size(tag))

    def run(self, image: Image, log: Path, **environment: str) -> Container:
        """Start the image's own command, on the host's network."""
        name = self._call("from", "--pull-never", image.name).strip()
        self._containers.append(name)
        return Container(image, Path(self._call("mount", name).strip()), log, environment)

    def close(self) -> None:
        """Let go of all mounts."""
        for name in self._containers:
            self._call("umount", name)
            self._call("rm", name)

    def _gather(self, requirements: Sequence[str]) -> Path:
        """A folder with the wheels of `requirements`, and with `MORE`."""
        wheels = self.folder / "wheels"
        pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check")
        pins = ("--constraint", str(ROOT / "constraints.txt"))
        _run(*pip, *pins, "--wheel-dir", str(wheels), *requirements, *MORE)
        return wheels

    def _size(self, image: str) -> int:
        [one] = json.loads(self._call("images", "--json", image))
        return int(one["size"]) if isinstance(one["size"], int) else _bytes(one["size"])

    def _call(self, *arguments: str) -> str:
        return _run(*self._buildah, *arguments)


class Container:
    """A running container. Its root file system cannot be written to, and its user has no rights at all.

    Made of namespaces by util-linux alone, since container engines want a cgroup tree of their own.
    """

    def __init__(self, image: Image, root: Path, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        user, _, group = image.config["User"].partition(":")
        rights = ("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")
        given = (f"{name}={value}" for name, value in environment.items())
        self._as_user = (
            *("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", *rights),
            *("env", "--ignore-environment", *image.config["Env"], *given),
        )
        command = (*image.config["Entrypoint"], *image.config["Cmd"])
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*_UNSHARE, "sh", "-c", _ENTER, str(root), *self._as_user, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as the container's user."""
        return subprocess.run(
            ["nsenter", f"--target={self._first}", *_SPACES, "--root", "--wd", *self._as_user, *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def stop(self) -> int:
        """SIGTERM to its first process, as container engines send it; the exit code."""
        if self.process.poll() is None:
            os.kill(self._first, signal.SIGTERM)
        return self.process.wait(60)

    @property
    def _first(self) -> int:
        """The first process of the container, by its number out here."""
        [child] = psutil.Process(self.process.pid).children()
        return child.pid


def _run(*command: str) -> str:
    """The output of a command. Raises AssertionError with the end of what it wrote when it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False, cwd=ROOT
    )
    assert done.returncode == 0, f"{' '.join(command)}: {(done.stdout + done.stderr)[-4000:]}"
    return done.stdout


def _bytes(text: str) -> int:
    """`1.05 GB`, as buildah says it, in bytes."""
    number, unit = text.split()
    return int(float(number) * 1000 ** ("B", "KB", "MB", "GB").index(unit.upper()))
