"""Log lines as text or as one JSON object each, and what is known about the request or job they belong to."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_fields: ContextVar[dict[str, object] | None] = ContextVar("log_fields", default=None)

# What a terminal or a reader of logs could take for more than text, but for the line ends of stack traces.
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
_VISIBLE = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROLS}
_TRACE_LINES = {code: text for code, text in _VISIBLE.items() if chr(code) not in "\t\n"}


def configure(log_format: Format, level: Level) -> None:
    """Send every log line of this process to standard error in the given form; only commands call this."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if log_format == "json":
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught


@contextmanager
def log_fields(**values: object) -> Iterator[dict[str, object]]:
    """Add `values`, and what is put into the dict later, to every line of JSON that is logged inside.

    Tasks that are started inside count as inside.
    """
    fields = {**(_fields.get() or {}), **values}
    token = _fields.set(fields)
    try:
        yield fields
    finally:
        _fields.reset(token)


def note(**values: object) -> None:
    """Add `values` to the innermost `log_fields`; nothing outside of any."""
    fields = _fields.get()
    if fields is not None:
        fields.update(values)


def note_job(job_id: str) -> None:
    """Add a job to the innermost `log_fields`."""
    fields = _fields.get()
    if fields is not None:
        fields["jobs"] = [*fields.get("jobs", ()), job_id]  # type: ignore[misc]


def of_job(job_id: str) -> dict[str, dict[str, list[str]]]:
    """The argument `extra` of a log line about one job."""
    return {"fields": {"jobs": [job_id]}}


class TextFormatter(logging.Formatter):
    """A line for people; control characters that came from outside are made visible."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line without a stack trace."""
        return super().formatMessage(record).translate(_VISIBLE)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """A stack trace."""
        return super().formatException(ei).translate(_TRACE_LINES)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII; fields of the record go before those of its surroundings."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        entry: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = {**(_fields.get() or {}), **getattr(record, "fields", {})}
        entry |= {name: value for name, value in fields.items() if name not in entry}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("maskbit").critical("the process ends: %s", error, exc_info=(kind, error, trace))
