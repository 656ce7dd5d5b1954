"""A supervised process ends with its supervisor, even a killed one: its standard input reaches its end."""

import os
import signal
import threading

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
