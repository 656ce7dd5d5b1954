"""A rival's server in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.bench.client import Target
from service.bench.rivals.rival import Rival
from service.bench.running import await_answer, free_port

_STOP_TIMEOUT_S = 20.0


@contextmanager
def running_rival(rival: Rival, programs: Path, job: dict[str, object], answer: bytes) -> Iterator[Target]:
    """Where `job` gets `answer`. Every process that the server started has ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="rival-") as name:
        folder, port = Path(name), free_port()
        (folder / "answer.json").write_bytes(answer)
        # Files that a server keeps in the home folder or beside sockets go with this folder.
        homes = dict.fromkeys(("HOME", "TMPDIR", "BENTOML_HOME", "RAY_TMPDIR"), name)
        own = {"ANSWER": str(folder / "answer.json"), **homes}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                rival.command(programs, port),
                cwd=folder,
                env={**_clean_environment(programs), **own, **rival.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            body = json.dumps(job).encode()
            await_answer(port, "POST", "/generate", process, folder / "log", body)
            yield Target(port, "/generate", job)
        finally:
            _stop(process)


def _clean_environment(programs: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_"))}
    return {**kept, "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL for whatever is left of the processes that it started."""
    import psutil

    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    alive = [child for child in children if child.is_running()]
    for child in alive:
        child.terminate()
    _, alive = psutil.wait_procs(alive, timeout=_STOP_TIMEOUT_S)
    for child in alive:
        child.kill()
    psutil.wait_procs(alive, timeout=_STOP_TIMEOUT_S)
