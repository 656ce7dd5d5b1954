"""TensorBoard's writers without the stack traces of their threads, as when a disk is full."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_writers() -> Iterator[None]:
    """A block in which a thread that writes events ends without a trace: its writer raises the same error."""
    before = threading.excepthook

    def tell(told: threading.ExceptHookArgs) -> None:
        if not _writes_events(told.thread):
            before(told)

    threading.excepthook = tell
    try:
        yield
    finally:
        for thread in filter(_writes_events, threading.enumerate()):
            thread.join(1)  # the writer knows the error a moment before its thread tells it
        threading.excepthook = before


def _writes_events(thread: threading.Thread | None) -> bool:
    return type(thread).__module__ == "tensorboard.summary.writer.event_file_writer"
