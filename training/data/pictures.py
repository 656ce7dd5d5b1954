"""From the bytes of a picture file to plain RGB, as all data sets here are read."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from models.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 2**27  # 134 million, 0.4 GB as RGB; Pillow warns at 89 million and refuses 179 million


def decode(data: bytes, at_least: int | None = None) -> Image.Image:
    """The RGB picture of a file; InputError for one that is damaged, of no known format, or absurdly large.

    With `at_least`, in pixels, a JPEG may come halved (or quartered, …) as long as neither side falls below
    it, which is several times faster for large photographs.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{image.width}x{image.height} pixels; allowed are {MAX_PIXELS} in all")
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            return to_rgb(image)
    except InputError:
        raise
    except UnidentifiedImageError as exc:
        raise InputError(f"no picture of a known format ({', '.join(FORMATS)})") from exc
    except Exception as exc:  # a broken file can trip Pillow's decoders in any way
        raise InputError(f"no sound picture ({' '.join(str(exc).split()) or type(exc).__name__})") from exc


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB picture of `image`: turned as its EXIF data say, transparency on white, 16-bit grey scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")
