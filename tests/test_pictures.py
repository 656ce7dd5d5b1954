from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import InputError
from tests.training_fixtures import picture_bytes, random_pixels
from training.data.pictures import MAX_PIXELS, decode


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that nothing follows."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 100) + b"IDAT"


def test_a_lossless_picture_keeps_its_pixels() -> None:
    image = Image.fromarray(random_pixels(3))
    for data in (picture_bytes(3), file_of(image, "WEBP", lossless=True), file_of(image, "BMP")):
        assert np.array_equal(np.asarray(decode(data)), random_pixels(3))


@pytest.mark.parametrize("data", [b"", b"no picture", picture_bytes(0)[:200], b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_sound_picture_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^no (sound picture|picture of a known format) \(.+\)$"):
        decode(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(2**14, 2**13 + 1), (2**31 - 1, 1)])
def test_an_absurd_size_is_refused_by_its_header(width: int, height: int) -> None:
    assert width * height > MAX_PIXELS
    with pytest.raises(InputError, match="pixels"):
        decode(png_of_size(width, height))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_size_of_which_pillow_only_warns_is_read() -> None:
    with pytest.raises(InputError, match=r"no sound picture \(.*(truncated|broken|cannot)"):
        decode(png_of_size(10_000, 10_000))


def test_a_large_jpeg_comes_smaller_but_never_below_what_is_needed() -> None:
    grey = np.linspace(0, 255, 800).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(grey[None, :, None], (600, 800, 3)).copy())
    data = file_of(image, "JPEG", quality=95)
    assert decode(data).size == (800, 600)
    assert decode(data, 301).size == (800, 600)
    half = decode(data, 300)
    assert half.size == (400, 300)
    expected = np.asarray(image.resize((400, 300), Image.Resampling.BOX), dtype=int)
    assert np.abs(np.asarray(half, dtype=int) - expected).max() <= 3
    assert decode(data, 1).size == (100, 75)
    assert decode(file_of(image, "PNG"), 1).size == (800, 600)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd metadata
def test_no_hostile_file_does_more_than_be_refused(shared_data: Path) -> None:
    files = sorted((shared_data / "data" / "hostile" / "files").iterdir())
    assert len(files) > 20
    refused = []
    for file in files:
        try:
            assert decode(file.read_bytes()).mode == "RGB"
        except InputError as exc:
            refused.append(str(exc))
    assert len(refused) > 5
    assert not any("\n" in reason for reason in refused)
