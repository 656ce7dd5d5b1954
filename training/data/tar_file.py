"""The files in a tar archive, from a stream that is read once.

`tarfile` ends silently at a damaged header in the middle; here that is an error.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

BLOCK = 512
CHUNK_BYTES = 1 << 20
MAX_BYTES = 1 << 40  # of a file; a header can claim far more than any archive holds
MAX_NAME_BYTES = 1 << 20  # of a long name or the pax records of a file
MAX_LENGTH_DIGITS = 7  # of a pax record within MAX_NAME_BYTES
NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)
BETWEEN = (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE)  # may stand between a long name and its file


class Member:
    """A file of the archive, to be read before the next one is asked for, or not at all."""

    def __init__(self, stream: BinaryIO, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._stream = stream
        self._left = size + -size % BLOCK

    def read(self) -> bytes:
        """The content; EOFError when the archive ends before it does."""
        data = self._stream.read(self.size)
        padding = self._stream.read(self._left - self.size) if len(data) == self.size else b""
        self._left -= len(data) + len(padding)
        if len(data) < self.size:
            self._left = 0
            raise EOFError(f"{len(data)} of {self.size} bytes are there")
        return data

    def skip(self) -> None:
        """Pass over what was not read."""
        if self._left and self._stream.seekable():
            self._stream.seek(self._left, 1)
        else:
            while self._left and (data := self._stream.read(min(self._left, CHUNK_BYTES))):
                self._left -= len(data)
        self._left = 0


def tar_members(stream: BinaryIO) -> Iterator[Member]:
    """Regular files in order, with the long names of GNU and pax archives. Raises tarfile.TarError."""
    name = ""
    first = True
    while (header := _header(stream, first)) is not None:
        first = False
        member = Member(stream, name or header.name, header.size)
        if header.type == tarfile.GNUTYPE_LONGNAME:
            name = _content(member).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif header.type == tarfile.XHDTYPE:
            name = _pax_path(_content(member))
        elif header.type in BETWEEN:
            member.skip()
        else:
            name = ""
            if header.isreg():
                yield member
            if header.isreg() or header.type not in tarfile.SUPPORTED_TYPES:
                member.skip()


def _header(stream: BinaryIO, first: bool) -> tarfile.TarInfo | None:
    """The next header; None at the end of the archive."""
    block = stream.read(BLOCK)
    if first and not block:
        raise tarfile.ReadError("empty file")
    if not block or block.count(0) == len(block) == BLOCK:
        return None
    header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    limit = MAX_NAME_BYTES if header.type in NAMES else MAX_BYTES
    if not 0 <= header.size <= limit:
        raise tarfile.ReadError(f"a header claims {header.size} bytes; allowed are 0 to {limit}")
    return header


def _content(member: Member) -> bytes:
    try:
        return member.read()
    except EOFError as exc:
        raise tarfile.ReadError("ends in the middle of a name") from exc


def _pax_path(data: bytes) -> str:
    """The path among records `length key=value\\n`, of which the length counts everything; "" for none."""
    path = ""
    start = 0
    while start < len(data):
        length, space, _ = data[start : start + MAX_LENGTH_DIGITS + 1].partition(b" ")
        begin, end = start + len(length) + 1, start + int(length) if length.isdigit() else 0
        if not space or end <= begin:
            raise tarfile.ReadError("damaged pax header")
        key, _, value = data[begin : end - 1].partition(b"=")
        if key == b"path":
            path = value.decode("utf-8", "surrogateescape")
        start = end
    return path
