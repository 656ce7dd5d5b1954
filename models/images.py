"""Picture and token files of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from models import bits
from models.bundle import Manifest
from models.errors import InputError
from models.runtime.base import Integers, Pixels


def read_picture(path: Path, size: int) -> Pixels:
    """Pixels u8 (size, size, 3) of a picture file: turned upright, short side resized, centre-cropped.

    Raises InputError for anything that is not a picture.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS))
    except UnidentifiedImageError as exc:
        raise InputError(f"{path} is not a picture that can be read") from exc
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except (ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise InputError(f"{path} cannot be decoded: {exc}") from exc


def read_tokens(path: Path, manifest: Manifest) -> Integers:
    """Token indices i64 (h, w) of a JSON file with `indices` or `tokens`; InputError when they do not fit."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise InputError(f"{path} is not JSON: {exc}") from exc
    width = manifest.tokenizer.bits
    try:
        indices = (
            np.array(content["indices"], dtype=np.int64)
            if "indices" in content
            else bits.from_strings(content["tokens"], width)
        )
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise InputError(f"{path}: expected 'indices' or 'tokens' as a grid of rows") from exc
    if indices.shape != (manifest.grid, manifest.grid):
        raise InputError(
            f"{path}: the grid is {indices.shape}; {manifest.name} has {manifest.grid} x {manifest.grid}"
        )
    bits.check_indices(indices, width)
    return indices
