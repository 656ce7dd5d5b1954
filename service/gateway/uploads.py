"""Uploaded pictures -> small RGB arrays, in a process of its own that has little to lose.

`service/gateway/decoder_pool.py` runs this file as a script. It is the only place that parses a picture, its
header included. It imports nothing of ours, has a memory limit, a CPU limit per picture and no files to
write, and ends with its parent (end of its standard input). What it refuses crosses the pipe as a `Kind` and
a message.
"""

import io
import os
import resource
import signal
import struct
import sys
import warnings
from collections.abc import Callable
from enum import IntEnum
from typing import BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import (
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

Fit = Literal["crop", "pad", "stretch"]
FITS: tuple[Fit, ...] = get_args(Fit)
Ground = Literal["white", "black"]
GROUNDS: tuple[Ground, ...] = get_args(Ground)
Box = tuple[float, float, float, float]

# A longer strip shows next to nothing of itself in a square; 20 leaves room for every panorama.
MAX_ASPECT = 20
ALLOWED = "PNG, JPEG, WebP and GIF"

# On the pipe, big-endian: a request is its header (bytes of data, side in pixels, index in FITS, index in
# GROUNDS, pixel limit) and the data; a reply is its header (kind, bytes that follow) and the pixels or a
# message in UTF-8.
REQUEST = struct.Struct(">QIBBQ")
REPLY = struct.Struct(">BI")

# The readers themselves and not Image.open, which for a camera's MPO would also parse the maker's index of
# the other pictures: broken metadata there must not refuse a sound first picture.
_READERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"8BPS", "Photoshop"),
    (b"DDS ", "DDS"),
    (b"icns", "ICNS"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"\x01\xda", "SGI"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"<", "SVG, XML or HTML"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b", "gzip"),
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Kind(IntEnum):
    """What a reply holds: pixels, or the reason of a refusal."""

    PIXELS = 0
    INVALID = 1
    UNSUPPORTED = 2
    TOO_LARGE = 3


class RefusedError(Exception):
    """The picture is not accepted; the message says what was got and what is allowed."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def decode(
    data: bytes, *, size: int, fit: Fit, max_pixels: int, ground: Ground = "white"
) -> NDArray[np.uint8]:
    """The first frame of a picture, upright, in sRGB: u8[size, size, 3].

    `fit`: `crop` keeps the centre square, `pad` adds a margin, `stretch` ignores the aspect ratio. `ground`
    is the colour of the margin and behind what is transparent.
    Raises RefusedError.
    """
    name = _sniff(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(name, data, size, fit, max_pixels, ground)
    except RefusedError:
        raise
    except MemoryError:
        raise RefusedError(
            Kind.TOO_LARGE, f"the {name} picture needs more memory than a decoder may take"
        ) from None
    except Exception as error:
        # On hostile bytes Pillow raises OSError, SyntaxError, ValueError, TypeError, zlib.error and more.
        raise RefusedError(
            Kind.INVALID, f"the {name} picture is cut short or damaged: it cannot be decoded"
        ) from error


def _sniff(data: bytes) -> str:
    if not data:
        raise RefusedError(Kind.INVALID, f"the picture is empty (0 bytes); allowed are {ALLOWED}")
    name = _name_of(data)
    if name not in _READERS:
        found = f"this is {name}" if name else f"these {len(data):,} bytes are no picture that is known here"
        raise RefusedError(Kind.UNSUPPORTED, f"{found}; allowed are {ALLOWED}, told by content")
    return name


def _name_of(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        return "AVIF" if data[8:12] in (b"avif", b"avis") else "HEIF or a film"
    return next((name for signature, name in _SIGNATURES if data.startswith(signature)), None)


def _decode(
    name: str, data: bytes, size: int, fit: Fit, max_pixels: int, ground: Ground
) -> NDArray[np.uint8]:
    if name == "WebP":
        # Pillow's WebP reader allocates two canvases when it opens a file, so its size is read here first.
        _check_size(_webp_size(data), max_pixels)
    image = _READERS[name](io.BytesIO(data))
    _check_size(image.size, max_pixels)
    region = _shrink_on_load(image, size, fit)
    image.load()
    turn, profile = _turn(image), image.info.get("icc_profile")
    small = _srgb(_opaque(_resized(_plain(image), region, size, fit), ground), profile)
    if turn is not None:
        small = small.transpose(turn)
    if small.size != (size, size):
        square = Image.new("RGB", (size, size), ground)
        square.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
        small = square
    return np.asarray(small)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas, by RFC 9649 §2."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _check_size(pixels: tuple[int, int], max_pixels: int) -> None:
    width, height = pixels
    got = f"the picture is {width}x{height} pixels"
    if width * height > max_pixels:
        raise RefusedError(
            Kind.TOO_LARGE, f"{got} ({width * height:,} in all), at most {max_pixels:,} are allowed"
        )
    if min(pixels) < 1 or max(pixels) > MAX_ASPECT * min(pixels):
        raise RefusedError(Kind.INVALID, f"{got}; its sides may differ by a factor of {MAX_ASPECT} at most")


def _shrink_on_load(image: Image.Image, size: int, fit: Fit) -> Box:
    """Lets libjpeg decode at 1/2, 1/4 or 1/8 where twice the wanted pixels remain; the box of the picture."""
    ends = (2 * size, 2 * size)
    if fit == "pad":
        width, height = _padded(image.size, size)
        ends = (2 * width, 2 * height)
    draft = image.draft(None, ends) if isinstance(image, JpegImagePlugin.JpegImageFile) else None
    return draft[1] if draft else (0, 0, image.width, image.height)


def _padded(pixels: tuple[float, float], size: int) -> tuple[int, int]:
    scale = size / max(pixels)
    return max(1, round(pixels[0] * scale)), max(1, round(pixels[1] * scale))


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (
        Exception
    ):  # broken metadata fails in as many ways as broken pictures, and is no reason to refuse one
        return None


def _plain(image: Image.Image) -> Image.Image:
    """The picture as L, RGB, RGBA or CMYK: no palette, no transparent colour, no 16-bit values."""
    if image.mode.startswith("I"):
        return _eight_bit(image)
    wanted = (
        "RGBA" if image.has_transparency_data else {"1": "L", "L": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    )
    return image if image.mode == wanted else image.convert(wanted)


def _eight_bit(image: Image.Image) -> Image.Image:
    table = [(value * 255 + 32767) // 65535 for value in range(65536)]
    transparent = image.info.get("transparency")
    if transparent is not None:
        table[transparent] = 255
    return image.convert("I").point(table, "L")


def _resized(image: Image.Image, region: Box, size: int, fit: Fit) -> Image.Image:
    _, _, width, height = region
    target = _padded((width, height), size) if fit == "pad" else (size, size)
    if fit == "crop":
        side = min(width, height)
        region = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    return image.resize(target, Image.Resampling.LANCZOS, box=region)


def _opaque(image: Image.Image, ground: Ground) -> Image.Image:
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB")


def _srgb(image: Image.Image, profile: object) -> Image.Image:
    if isinstance(profile, bytes):
        try:
            source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image.convert("RGB")
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            pass  # a broken profile, or one that does not fit the picture, is no reason to refuse it
    return image.convert("RGB")


def serve(source: BinaryIO, sink: BinaryIO, cpu_s: float) -> None:
    """Answers requests until the parent closes the pipe; a picture that takes more CPU ends the process."""
    sink.write(REPLY.pack(Kind.PIXELS, 0))
    sink.flush()
    while len(header := source.read(REQUEST.size)) == REQUEST.size:
        length, size, fit, ground, max_pixels = REQUEST.unpack(header)
        data = source.read(length)
        if len(data) < length:
            return
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            pixels = decode(data, size=size, fit=FITS[fit], max_pixels=max_pixels, ground=GROUNDS[ground])
            kind, answer = Kind.PIXELS, pixels.tobytes()
        except RefusedError as refused:
            kind, answer = refused.kind, refused.message.encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        del data
        sink.write(REPLY.pack(kind, len(answer)) + answer)
        sink.flush()


def main(memory_bytes: int, cpu_s: float) -> None:
    """Takes the limits, then serves standard input and output."""
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into a reply
    Image.MAX_IMAGE_PIXELS = None  # the request's own limit is checked instead, before anything is decoded
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    if sys.platform != "darwin":  # macOS refuses this limit
        _limit(resource.RLIMIT_AS, memory_bytes)
    serve(sys.stdin.buffer, sink, cpu_s)


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
