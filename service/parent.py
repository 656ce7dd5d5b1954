"""A supervised process ends with its supervisor, even a killed one: its standard input reaches its end.

A program that knows nothing of this gets a watcher beside it.
"""

import os
import signal
import subprocess
import threading
from contextlib import suppress

SUPERVISED = "MASKBIT_SUPERVISED"


def end_with_parent() -> None:
    """Send SIGTERM to this process when the supervisor's pipe closes; nothing for an unsupervised process."""
    if os.environ.get(SUPERVISED):
        threading.Thread(target=_watch, name="parent", daemon=True).start()


def _watch() -> None:
    # The plain descriptor: a buffered reader's lock would break the end of the interpreter.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


# Reads to the end of the supervisor's pipe; then, after $2 seconds, ends process $1, if it is still there.
# It looks each second, so that a process which gets the same number later is left alone.
_WATCHER = """
cat > /dev/null
left=$2
while kill -0 "$1" 2> /dev/null; do
    if [ "$left" -le 0 ]; then kill "$1"; exit; fi
    left=$((left - 1))
    sleep 1
done
"""


def watcher(pid: int, outlives_s: float) -> subprocess.Popen[bytes]:
    """A small process that ends the process `pid` when we have been gone for `outlives_s` seconds.

    Give it to `end_watcher` once `pid` has ended.
    """
    return subprocess.Popen(
        ["sh", "-c", _WATCHER, "sh", str(pid), str(int(outlives_s))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C is for the supervisor alone.
        start_new_session=True,
    )


def end_watcher(watcher: subprocess.Popen[bytes]) -> None:
    """End what `watcher` returned."""
    # To close its standard input would not do where a process that was forked from this one holds it, too.
    with suppress(ProcessLookupError):
        os.killpg(watcher.pid, signal.SIGKILL)
    assert watcher.stdin is not None
    watcher.stdin.close()
    watcher.wait()
