"""Malformed pictures: seeded mutations of sound ones that know the parts of PNG, JPEG, WebP and GIF files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from random import Random

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIDES = (0, 1, 2, 7, 255, 256, 4096, 16_383, 16_384, 32_767, 65_535)
_LONG_SIDES = (*_SIDES, 100_000, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def malformed(sources: Sequence[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` files, each from one of `sources` by one to three mutations; the same for the same seed."""
    for index in range(count):
        random = Random(f"{seed}/{index}")
        data = random.choice(sources)
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            data = random.choice(_MUTATIONS)(data, random, sources)
        yield data


def _flipped(data: bytes, random: Random, sources: Sequence[bytes]) -> bytes:
    broken = bytearray(data)
    # Half of the time near the beginning, where the headers are.
    reach = len(data) if random.random() < 0.5 else min(len(data), 64)
    for _ in range(random.randint(1, 16) if reach else 0):
        broken[random.randrange(reach)] ^= 1 << random.randrange(8)
    return bytes(broken)


def _truncated(data: bytes, random: Random, sources: Sequence[bytes]) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _without_a_slice(data: bytes, random: Random, sources: Sequence[bytes]) -> bytes:
    start, end = _slice(data, random)
    return data[:start] + data[end:]


def _with_a_slice_twice(data: bytes, random: Random, sources: Sequence[bytes]) -> bytes:
    start, end = _slice(data, random)
    return data[:end] + data[start:]


def _filled(data: bytes, random: Random, sources: Sequence[bytes]) -> bytes:
    start, end = _slice(data, random)
    return data[:start] + random.choice((b"\0", b"\xff", b"%")) * (end - start) + data[end:]


def _concatenated(data: bytes, random: Random, sources: Sequence[bytes]) -> bytes:
    return data + random.choice(sources)


def _spliced(data: bytes, random: Random, sources: Sequence[bytes]) -> bytes:
    other = random.choice(sources)
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


def _resized(data: bytes, random: Random, sources: Sequence[bytes]) -> bytes:
    """Another width and height in the header, with a checksum that is right."""
    broken = bytearray(data)
    short = [random.choice(_SIDES) for _ in range(2)]
    if data.startswith(PNG_SIGNATURE) and len(data) > 33:
        struct.pack_into(">II", broken, 16, *(random.choice(_LONG_SIDES) for _ in range(2)))
        struct.pack_into(">I", broken, 29, zlib.crc32(broken[12:29]))
    elif data[:3] == b"GIF" and len(data) > 10:
        struct.pack_into("<HH", broken, 6, *short)
    elif data[12:16] == b"VP8X" and len(data) > 30:
        broken[24:30] = b"".join((min(side, 1 << 23)).to_bytes(3, "little") for side in short)
    elif data[12:16] in (b"VP8 ", b"VP8L") and len(data) > 30:
        struct.pack_into("<HH", broken, 26 if data[15:16] == b" " else 21, *short)
    else:
        for start, marker in _jpeg_markers(data):
            if 0xC0 <= marker <= 0xC2 and start + 9 <= len(data):
                struct.pack_into(">HH", broken, start + 5, *short)
    return bytes(broken)


def _shuffled_parts(data: bytes, random: Random, sources: Sequence[bytes]) -> bytes:
    """Chunks or segments that are missing, twice there, exchanged, or another picture's."""
    head, *parts = _parts(data)
    if len(parts) < 2:
        return data
    one, two = random.randrange(len(parts)), random.randrange(len(parts))
    what = random.randrange(4)
    if what == 0:
        del parts[one]
    elif what == 1:
        parts.insert(two, parts[one])
    elif what == 2:
        parts[one], parts[two] = parts[two], parts[one]
    else:
        foreign = _parts(random.choice(sources))
        parts[one] = random.choice(foreign)
    return head + b"".join(parts)


def _wrong_length(data: bytes, random: Random, sources: Sequence[bytes]) -> bytes:
    """A chunk or segment that lies about its length."""
    parts = _parts(data)
    one = random.randrange(len(parts))
    part, lie = parts[one], random.choice(_LONG_SIDES)
    if data.startswith(PNG_SIGNATURE):
        parts[one] = struct.pack(">I", lie) + part[4:]
    elif data[:4] == b"RIFF":
        parts[one] = part[:4] + struct.pack("<I", lie) + part[8:]
    else:
        parts[one] = part[:2] + struct.pack(">H", lie & 0xFFFF) + part[4:]
    return b"".join(parts)


def _damaged_content(data: bytes, random: Random, sources: Sequence[bytes]) -> bytes:
    """Noise inside one part; a PNG's checksum is made right, so that the noise reaches the decoder."""
    parts = _parts(data)
    one = random.randrange(len(parts))
    part = bytearray(parts[one])
    for _ in range(random.randint(1, 8) if len(part) > 12 else 0):
        part[random.randrange(8, len(part) - 4)] = random.randrange(256)
    if data.startswith(PNG_SIGNATURE) and one and len(part) >= 12:
        struct.pack_into(">I", part, len(part) - 4, zlib.crc32(part[4:-4]))
    parts[one] = bytes(part)
    return b"".join(parts)


_MUTATIONS: tuple[Callable[[bytes, Random, Sequence[bytes]], bytes], ...] = (
    _flipped,
    _truncated,
    _without_a_slice,
    _with_a_slice_twice,
    _filled,
    _concatenated,
    _spliced,
    _resized,
    _shuffled_parts,
    _wrong_length,
    _damaged_content,
)


def _slice(data: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + random.randint(1, 200))


def _parts(data: bytes) -> list[bytes]:
    """The file header and the chunks, segments or blocks behind it; together they are `data`."""
    if data.startswith(PNG_SIGNATURE):
        starts = _chunk_starts(data, 8, ">I", at=0, extra=12)
    elif data[:4] == b"RIFF":
        starts = _chunk_starts(data, 12, "<I", at=4, extra=8)
    elif data[:2] == b"\xff\xd8":
        starts = [start for start, _ in _jpeg_markers(data)]
    else:
        # A GIF has no outer frame: an extension or picture begins at these bytes, now and then by chance.
        starts = [place for place in range(13, len(data)) if data[place : place + 1] in (b"!", b",")]
    ends = [*starts, len(data)]
    return [data[: ends[0]], *(data[start:end] for start, end in pairwise(ends))]


def _chunk_starts(data: bytes, start: int, length: str, at: int, extra: int) -> list[int]:
    starts = []
    while start + 8 <= len(data):
        starts.append(start)
        size = int(struct.unpack_from(length, data, start + at)[0])
        # WebP's chunks are padded to an even length.
        start += extra + size + (size & 1 if at else 0)
    return starts


def _jpeg_markers(data: bytes) -> list[tuple[int, int]]:
    """Places and codes of the markers before the compressed data, and of that of the data itself."""
    markers, start = [], 2
    while start + 4 <= len(data) and data[start] == 0xFF:
        markers.append((start, data[start + 1]))
        if data[start + 1] == 0xDA:
            break
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return markers
