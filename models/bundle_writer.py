"""Write a bundle: weights first, the manifest with their digests last: a cut-off write is never loadable."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from models.bundle import MANIFEST, Bundle, Manifest, file_digest, open_bundle
from models.errors import BundleError
from models.whole_file import whole_folder

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_place(path: Path) -> None:
    """Raise BundleError unless a bundle may be written to `path`: new, empty, or a bundle to be replaced."""
    if path.exists() and not (path / MANIFEST).exists() and not (path.is_dir() and not any(path.iterdir())):
        raise BundleError(f"{path} exists and is no bundle; give an empty or a new folder")


def check_new(path: Path) -> None:
    """Raise BundleError unless `path` is new or an empty folder: a bundle there is not to be replaced."""
    check_place(path)
    if (path / MANIFEST).exists():
        raise BundleError(f"{path} holds another bundle; give an empty or a new folder")


def write_bundle(
    path: Path, manifest: Manifest, weights: Mapping[str, Mapping[str, Tensor]], precision: str = "fp32"
) -> Bundle:
    """Write the folder `path`; `weights` maps file names to state dicts, stored in `precision`.

    An existing bundle at `path` is replaced as a whole; another non-empty folder is refused.
    """
    check_place(path)
    try:
        return _write(path, manifest, weights, precision)
    except (OSError, SafetensorError) as exc:
        raise BundleError(f"{path} cannot be written: {getattr(exc, 'strerror', None) or exc}") from exc


def copy_bundle(bundle: Bundle, path: Path) -> Bundle:
    """The manifest and the weights of `bundle` in the new or empty folder `path`.

    A bundle of the same revision there is opened as it is, with all that was added to it. Raises BundleError
    for another one, and when a file of `bundle` is damaged.
    """
    path = path.absolute()
    if (path / MANIFEST).exists():
        found = open_bundle(str(path))
        if found.revision == bundle.revision:
            return found
    check_new(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(path) as folder:
            for name in bundle.manifest.files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle.weights_file(name), folder / name)
            (folder / MANIFEST).write_bytes(bundle.text.encode())
    except OSError as exc:
        raise BundleError(f"{path} cannot be written: {exc.strerror or exc}") from exc
    return Bundle(path, bundle.manifest, bundle.text)


def _write(
    path: Path, manifest: Manifest, weights: Mapping[str, Mapping[str, Tensor]], precision: str
) -> Bundle:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(path) as folder:
        for name, tensors in weights.items():
            stored = {key: _stored(key, value, precision) for key, value in tensors.items()}
            save_file(stored, folder / name)
            # safetensors writes for the owner alone; a service often runs as another user.
            (folder / name).chmod(0o644)
        files = {name: file_digest(folder / name) for name in weights}
        manifest = replace(manifest, files=files)
        text = manifest.to_json()
        (folder / MANIFEST).write_bytes(text.encode())
    return Bundle(path, manifest, text)


def _stored(key: str, value: Tensor, precision: str) -> Tensor:
    value = value.detach().cpu().contiguous()
    if not value.is_floating_point():
        return value
    stored = value.to(DTYPES[precision])
    if not torch.isfinite(stored).all():
        raise BundleError(f"{key} holds values that {precision} cannot store; use another precision")
    return stored
