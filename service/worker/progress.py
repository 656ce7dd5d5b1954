"""Tells the followers of jobs how they get on, in a thread of its own."""

from __future__ import annotations

import base64
import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from models.runtime.base import Pixels
from service.jobs.consumer import Consumer
from service.pictures import picture_file
from service.worker.finisher import Finished, Finisher

log = logging.getLogger(__name__)

BACKLOG = 256  # messages that wait to be sent; more are lost
PAUSE_S = 1.0


class Progress:
    """Publishes messages in their order, and hands on the ends of followed jobs behind them.

    Otherwise the end of a fast job would overtake its previews, whose encoding takes time. `guard` runs the
    thread's loop and is told what breaks it.
    """

    def __init__(
        self, consumer: Consumer, finisher: Finisher, guard: Callable[[Callable[[], None]], None]
    ) -> None:
        self._consumer = consumer
        self._finisher = finisher
        self._waiting: queue.SimpleQueue[tuple[str, dict[str, Any], Pixels | None] | Finished | None]
        self._waiting = queue.SimpleQueue()
        self._pause_until_s = 0.0
        self._thread = threading.Thread(target=guard, args=(self._loop,), name="progress", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def tell(self, job_id: str, data: dict[str, Any], preview: Pixels | None) -> None:
        """Publish this soon; when too many messages wait, it is lost."""
        if self._waiting.qsize() < BACKLOG:
            self._waiting.put((job_id, data, preview))
        else:
            log.debug("progress of %s was left out", job_id)

    def finish(self, finished: Finished) -> None:
        """Hand this to the finisher when all that was told before is published."""
        self._waiting.put(finished)

    def close(self) -> None:
        """Publish and hand on what waits, then end."""
        self._waiting.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while (item := self._waiting.get()) is not None:
            if isinstance(item, Finished):
                self._finisher.add(item)
            elif time.monotonic() >= self._pause_until_s and not self._publish(*item):
                # One call to a Redis that is away may take seconds, and the ends of jobs wait behind it.
                self._pause_until_s = time.monotonic() + PAUSE_S

    def _publish(self, job_id: str, data: dict[str, Any], preview: Pixels | None) -> bool:
        if preview is not None:
            data["preview"] = base64.b64encode(picture_file(preview, "png")).decode()
        return self._consumer.publish(job_id, json.dumps({"event": "progress", "data": data}).encode())
