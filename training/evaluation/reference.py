"""Statistics of real pictures that drawn ones are compared with: from shards, or from a saved .npz file."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.errors import ConfigError
from models.validation import require
from training.evaluation.frechet import Moments, moments_of_sums
from training.evaluation.tally import Totals

# The keys mu, sigma, mu_s and sigma_s are those of guided-diffusion's reference files.
KEYS = {"pooled": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclass(frozen=True)
class Reference:
    """Moments of real pictures by kind of feature, and a sample of pooled features (m, D).

    What a file does not hold is missing: `spatial`, `sample`, the `network` that the features are of.
    """

    source: str
    moments: dict[str, Moments]
    sample: Tensor | None = None
    network: str | None = None

    def save(self, path: Path) -> None:
        """Write a .npz file that `read_reference` reads."""
        arrays: dict[str, np.ndarray] = {}
        for kind, (mean, covariance) in KEYS.items():
            if kind in self.moments:
                arrays[mean] = self.moments[kind].mean.numpy()
                arrays[covariance] = self.moments[kind].covariance.numpy()
        arrays["count"] = np.array(self.moments["pooled"].count)
        if self.sample is not None:
            arrays["features"] = self.sample.numpy()
        if self.network is not None:
            arrays["network"] = np.array(self.network)
        try:
            with path.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        except OSError as exc:
            raise ConfigError(f"{path} cannot be written: {exc.strerror}") from exc


def reference_of_sums(totals: Totals, side: str) -> dict[str, Moments]:
    """Moments of the pictures of `side`, by kind of feature; ConfigError for fewer than two pictures."""
    count = totals.number(f"{side} count")
    require(count >= 2, f"moments need at least 2 pictures, got {count:.0f}")
    return {kind: side_moments(totals, side, kind) for kind in KEYS}


def side_moments(totals: Totals, side: str, kind: str) -> Moments:
    """Moments of one kind of feature of the pictures of `side`."""
    name = f"{side} {kind}"
    return moments_of_sums(totals.number(f"{side} count"), totals[name], totals.square(f"{name} outer"))


def read_reference(path: Path, network: str, sizes: dict[str, int]) -> Reference:
    """The statistics in `path`, whose features must be of `network` and have `sizes` by kind.

    Raises ConfigError for a file that is missing, damaged, or of other features.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            wanted = {key for keys in KEYS.values() for key in keys} | {"count", "features", "network"}
            arrays = {key: file[key] for key in file.files if key in wanted}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise ConfigError(f"{path}: not a readable .npz file of reference statistics ({reason})") from exc
    require({"mu", "sigma"} <= set(arrays), f"{path} holds no mu and sigma; reference statistics need both")
    stored = str(arrays["network"]) if "network" in arrays else None
    require(
        stored in (None, network),
        f"{path} holds features of {stored}; this evaluation uses {network}",
    )
    count = int(arrays.get("count", np.array(0)))
    moments = {
        kind: _moments(path, count, arrays[mean], arrays[covariance], sizes[kind])
        for kind, (mean, covariance) in KEYS.items()
        if mean in arrays and covariance in arrays
    }
    sample = torch.from_numpy(arrays["features"]) if "features" in arrays else None
    return Reference(str(path), moments, sample, stored)


def _moments(path: Path, count: int, mean: np.ndarray, covariance: np.ndarray, size: int) -> Moments:
    require(
        mean.shape == (size,) and covariance.shape == (size, size),
        f"{path}: mean {mean.shape} and covariance {covariance.shape}; the features have {size} numbers",
    )
    return Moments(
        count, torch.from_numpy(mean.astype(np.float64)), torch.from_numpy(covariance.astype(np.float64))
    )
