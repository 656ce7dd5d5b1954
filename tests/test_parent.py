"""What ends when its parent was killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.parent import end_watcher, watcher
from tests.gateway_harness import until


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_watcher_ends_its_process_some_time_after_the_pipe_is_closed(
    sleeper: subprocess.Popen[bytes],
) -> None:
    watching = watcher(sleeper.pid, outlives_s=1)
    assert watching.stdin is not None
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(1.5)
    watching.stdin.close()
    sleeper.wait(10)
    assert watching.wait(10) == 0


def test_a_watcher_ends_with_its_process(sleeper: subprocess.Popen[bytes]) -> None:
    watching = watcher(sleeper.pid, outlives_s=3600)
    assert watching.stdin is not None
    sleeper.kill()
    sleeper.wait()
    watching.stdin.close()
    watching.wait(10)


def test_a_watcher_is_ended_though_another_process_holds_its_pipe(sleeper: subprocess.Popen[bytes]) -> None:
    watching = watcher(sleeper.pid, outlives_s=0)
    assert watching.stdin is not None
    held = os.dup(watching.stdin.fileno())  # as a forked process has it
    end_watcher(watching)
    os.close(held)
    assert watching.returncode is not None
    assert sleeper.poll() is None


def test_redis_ends_after_its_parent_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from service.jobs.redis_server import RedisServer; "
        "server = RedisServer(Path(sys.argv[1])); server.start(); print(server.pid, flush=True); "
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    redis = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not redis.is_running() or redis.status() == psutil.STATUS_ZOMBIE)
