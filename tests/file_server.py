"""A web server on the loopback interface for a folder of files, which can be told to misbehave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class FileServer:
    """`cuts` are the bytes after which the next connections break; `codes` the answers to the next ones."""

    folder: Path
    url: str = ""
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve_files(folder: Path) -> Iterator[FileServer]:
    """Serve `folder` until the block ends."""
    settings = FileServer(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            settings.requests.append(f"{self.path} {asked}".strip())
            path = folder / self.path.partition("?")[0].lstrip("/")
            if settings.codes:
                self.send_error(settings.codes.pop(0))
            elif not path.is_file():
                self.send_error(404)
            else:
                self.answer(path.read_bytes(), asked)

        def answer(self, data: bytes, asked: str) -> None:
            begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and settings.ranges else 0
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(data) - begin))
            self.end_headers()
            end = begin + settings.cuts.pop(0) if settings.cuts else len(data)
            self.wfile.write(data[begin:end])

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        settings.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield settings
        finally:
            server.shutdown()
            thread.join()
