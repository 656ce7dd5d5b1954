"""Judge a bundle's tokenizer by how it gives back the pictures of held-out shards."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.validation import require
from training.data.batch import Batch
from training.evaluation.bootstrap import Measure, estimates
from training.evaluation.drawing_folder import save_grid
from training.evaluation.feature_sample import FeatureSample
from training.evaluation.measures import (
    PAIRS,
    add_manifolds,
    codebook_measures,
    manifold_measures,
    mean_measures,
    paired_distance_measure,
    score_measure,
)
from training.evaluation.observer import (
    FAKE,
    REAL,
    Instruments,
    Observer,
    from_pixels,
    gathered_sample,
    to_bytes,
    to_pixels,
)
from training.evaluation.progress import PictureBar
from training.evaluation.reconstruction_metrics import mae, mse, psnr, ssim
from training.evaluation.report import Report, published_scores, size_warnings, usual_warnings
from training.evaluation.setup import Setup
from training.evaluation.shard_slice import RealPictures, ShardSlice
from training.evaluation.tally import Tally
from training.picture_grid import picture_grid

PAIR_MEASURES = {"mae": mae, "mse": mse, "psnr": psnr, "ssim": ssim}
GRID_COLUMNS = 8


@dataclass
class _Seen:
    """What one process has seen."""

    tally: Tally
    sides: dict[str, Observer]
    seconds: float = 0.0
    skipped: int = 0
    grid: Tensor | None = None


def evaluate_tokenizer(setup: Setup, pictures: RealPictures, *, out: Path | None = None) -> Report:
    """Measure reconstructions of `pictures`.

    Every process takes each of its batches and gets the same report. `out` gets the report and a grid of
    originals above their reconstructions.
    """
    instruments, ranks = setup.instruments, setup.ranks
    seen = _see(setup, pictures)
    tally = Tally(setup.settings.blocks)
    tally.merge(ranks.summed(seen.tally.sums()))
    require(f"{REAL} count" in tally.sums(), f"{pictures.shards}: no labelled picture that can be decoded")
    samples = {side: gathered_sample(observer.sample, ranks) for side, observer in seen.sides.items()}
    if instruments.features is not None:
        add_manifolds(tally, samples[REAL].tensor(), samples[FAKE], setup.device)
    counts = tally.sums()[f"{REAL} count"]
    total = int(counts.sum())
    measures = _measures(instruments, setup.device)
    report = Report(
        kind="tokenizer",
        bundle=setup.bundle.ref,
        pictures=total,
        settings=_described(setup, pictures.shards),
        measures=estimates(tally.sums(), counts, measures, setup.settings.replicates),
        costs={
            "seconds_per_image": sum(ranks.gathered(seen.seconds)) / total,
            "skipped_samples": sum(ranks.gathered(seen.skipped)),
        },
        warnings=tuple(_warnings(setup, tally, total)),
        published=published_scores("tokenizer"),
    )
    if ranks.first and out is not None:
        report.save(out)
        if seen.grid is not None:
            save_grid(out, picture_grid(seen.grid, len(seen.grid) // 2))
    return report


def _see(setup: Setup, pictures: RealPictures) -> _Seen:
    settings, ranks = setup.settings, setup.ranks
    tally = Tally(settings.blocks)
    sides = {
        side: Observer(side, setup.instruments, tally, FeatureSample(settings.compared))
        for side in (REAL, FAKE)
    }
    seen = _Seen(tally, sides)
    own = ShardSlice(pictures, setup.bundle.manifest.image_size, settings.batch_size, ranks)
    with PictureBar("Reconstructing", None, shown=ranks.first) as bar:
        for numbers, batch in own.batches():
            _look(setup, seen, numbers, batch)
            bar.advance(len(numbers))
    seen.skipped = own.skipped
    return seen


def _look(setup: Setup, seen: _Seen, numbers: NDArray[np.int64], batch: Batch) -> None:
    """Reconstruct one batch and take the sums of its pictures, which have these `numbers`."""
    runtime, tally = setup.runtime, seen.tally
    originals = to_bytes(batch.images)
    start = time.perf_counter()
    codes = runtime.encode(to_pixels(originals))
    rebuilt = from_pixels(runtime.decode(codes))
    seen.seconds += time.perf_counter() - start
    blocks = torch.from_numpy(numbers % tally.blocks)
    for side, images in ((REAL, originals), (FAKE, rebuilt)):
        seen.sides[side].add(numbers, blocks, images, batch.labels)
    size = setup.bundle.manifest.tokenizer.num_codes
    tally.add_counts(f"{PAIRS} codes", blocks, torch.from_numpy(codes), size)
    _compare(tally, setup.instruments, blocks, originals, rebuilt)
    if seen.grid is None:
        seen.grid = torch.cat([originals[:GRID_COLUMNS], rebuilt[:GRID_COLUMNS]]).float() / 255


@torch.inference_mode()
def _compare(
    tally: Tally, instruments: Instruments, blocks: Tensor, originals: Tensor, rebuilt: Tensor
) -> None:
    first, second = originals.float() / 255, rebuilt.float() / 255
    for name, measure in PAIR_MEASURES.items():
        tally.add(f"{PAIRS} {name}", blocks, measure(first, second))
    if instruments.lpips is not None:
        place = next(instruments.lpips.parameters()).device
        tally.add(f"{PAIRS} lpips", blocks, instruments.lpips(first.to(place), second.to(place)))


def _measures(instruments: Instruments, device: torch.device) -> dict[str, Measure]:
    names = [*PAIR_MEASURES, *(["lpips"] if instruments.lpips is not None else [])]
    found = mean_measures(names, PAIRS, f"{REAL} count") | codebook_measures()
    if instruments.features is not None:
        found["rfid"] = paired_distance_measure("pooled", device)
        found["rsfid"] = paired_distance_measure("spatial", device)
        found["inception_score"] = score_measure(FAKE)
        found |= manifold_measures()
    if instruments.judge is not None:
        for side, name in ((REAL, "accuracy_real"), (FAKE, "accuracy_reconstructed")):
            found[name] = mean_measures(["right"], side, f"{side} count")["right"]
    return found


def _described(setup: Setup, shards: str) -> dict[str, Any]:
    return {
        "shards": shards,
        "runtime": f"{setup.runtime.name} {setup.runtime.precision}",
        **setup.instruments.names(),
        **asdict(setup.settings),
    }


def _warnings(setup: Setup, tally: Tally, total: int) -> list[str]:
    found = usual_warnings(setup.instruments.features, setup.bundle.manifest)
    if setup.instruments.features is not None:
        sizes = {kind: tally.sums()[f"{FAKE} {kind}"].shape[1] for kind in ("pooled", "spatial")}
        found += size_warnings({"reconstructed": total}, sizes)
    return found
