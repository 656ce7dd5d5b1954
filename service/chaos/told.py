"""What a client was told: the events of a stream, and whose picture a result holds."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from service.chaos import expected
from service.chaos.workload import Request

_STREAM_ERRORS = {"deadline_passed": 504, "cancelled": 409, "unavailable": 503}


class Told:
    """The events of a stream, as far as they came."""

    def __init__(self) -> None:
        self._text = b""
        self.job_id = ""

    def feed(self, data: bytes) -> None:
        """Take in the next piece."""
        self._text += data
        if not self.job_id:
            for name, content in self._events():
                if name == "queued":
                    self.job_id = str(content["id"])

    def _events(self) -> list[tuple[str, Any]]:
        events = []
        for block in self._text.split(b"\n\n")[:-1]:
            fields = dict(line.split(b": ", 1) for line in block.splitlines() if b": " in line)
            if b"event" in fields:
                events.append((fields[b"event"].decode(), json.loads(fields[b"data"])))
        return events

    def answer(self) -> tuple[int, Any] | None:
        """How the stream ended, as the status and body of a plain answer; None when it was cut off."""
        events = self._events()
        names = [name for name, _ in events]
        if "done" in names:
            return 200, {"images": [content for name, content in events if name == "image"]}
        for name, content in events:
            if name == "error":
                return _STREAM_ERRORS.get(content["code"], 500), {"error": content}
        return None


def digest_of_result(result: Any) -> str:
    """The digest of the one picture or grid in a result, as the journal keeps it."""
    if "indices" in result:
        return expected.digest(np.array(result["indices"], dtype=np.int64))
    image = result["images"][0]
    if "indices" in image:
        return expected.digest(np.array(image["indices"], dtype=np.int64))
    return expected.digest_of_file(base64.b64decode(image["b64"]))


def foreign(request: Request, result: Any) -> str:
    """What in a result of generation belongs to another request; empty for nothing."""
    image = result.get("images", [{}])[0]
    if "seed" in image and (image["seed"], image["class_id"]) != (request.seed, request.class_id):
        return f"seed {image['seed']} and class {image['class_id']} of another request"
    return ""
