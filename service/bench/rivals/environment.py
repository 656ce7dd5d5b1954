"""A virtual environment for each rival, made from PyPI once and kept in a cache folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

from service.bench.rivals.rival import Rival
from service.errors import Unavailable

_INSTALL_TIMEOUT_S = 1200
_DONE = "installed.txt"


def default_cache_dir() -> Path:
    """Folder for the environments, after the XDG convention."""
    return Path("~/.cache/maskbit/rivals").expanduser()


def programs_of(rival: Rival, cache_dir: Path) -> Path:
    """The folder of the rival's programs, installed now if need be. Raises Unavailable: it cannot be."""
    folder = cache_dir / f"{rival.name}-{rival.version}-py{sys.version_info.major}.{sys.version_info.minor}"
    programs = folder / "bin"
    done = folder / _DONE
    if done.is_file():
        return programs
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    # Of the environment that calls, nothing may be seen in the other one.
    command = [str(programs / "python"), "-I", "-m", "pip", "install", "--quiet", rival.requirement]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
        lines = str(exc.stderr or exc).strip().splitlines()
        raise Unavailable(
            f"{rival.requirement} cannot be installed into {folder}: {lines[-1][:300]}; the comparison needs "
            "PyPI once, or leave --rivals away"
        ) from exc
    done.write_text(rival.requirement + "\n")
    return programs
