"""Judge a bundle by reconstructions of held-out shards and by pictures it draws (`maskbit evaluate`)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.bundle import Bundle, Manifest
from models.config import from_mapping, require
from models.drawing import draw
from models.errors import CheckpointError
from models.runtime.base import Integers, Pixels, Runtime
from models.runtime.torch_runtime import TorchRuntime
from training.checkpoints import checkpoint_files, load_checkpoint
from training.classifier import Classifier, accuracy
from training.config import ClassifierConfig
from training.data import evaluation_batches
from training.metrics import psnr
from training.run import image_grid

BATCH = 16  # pictures drawn or reconstructed together
GRID_COLUMNS = 8


@dataclass(frozen=True)
class Report:
    """What was measured; accuracies are the judge's, times are seconds of wall clock per picture in batches.

    What could not be measured, for want of a judge or a generator, is None.
    """

    bundle: str
    reconstructed: int
    psnr_db: float
    codebook_usage: float
    reconstruction_s: float
    generated: int
    generation_s: float | None
    accuracy_real: float | None
    accuracy_reconstructed: float | None
    accuracy_generated: float | None


def evaluate_bundle(
    bundle: Bundle,
    shards: str,
    *,
    judge: Path | None = None,
    per_class: int = 25,
    seed: int = 0,
    device: str = "auto",
    grid: Path | None = None,
) -> Report:
    """Measure `bundle` on the pictures of `shards` and on `per_class` drawn pictures of every class.

    Picture k of all drawn ones has the seed `seed` + k. `judge` is a checkpoint, or the folder of the run, of
    `maskbit train classifier`. `grid` gets a PNG: a row of drawn pictures per class or, without a generator,
    originals above their reconstructions.
    """
    require(per_class >= 1, f"per_class is {per_class}; it must be at least 1")
    manifest = bundle.manifest
    classifier = None if judge is None else load_judge(judge, manifest)
    runtime = TorchRuntime(bundle, device=device)
    originals, labels = _originals(shards, manifest.image_size)
    rebuilt, indices, reconstruction_s = _reconstruct(runtime, originals)
    drawn, drawn_labels, generation_s = _generate(runtime, manifest, per_class, seed)
    if grid is not None:
        rows = (
            drawn.reshape(-1, per_class, *drawn.shape[1:]) if len(drawn) else np.stack([originals, rebuilt])
        )
        shown = rows[:, :GRID_COLUMNS]
        image_grid(_floats(shown.reshape(-1, *shown.shape[2:])), shown.shape[1]).save(grid)
    return Report(
        bundle=bundle.ref,
        reconstructed=len(originals),
        psnr_db=float(psnr(_floats(rebuilt), _floats(originals)).mean()),
        codebook_usage=len(np.unique(indices)) / manifest.tokenizer.num_codes,
        reconstruction_s=reconstruction_s,
        generated=len(drawn),
        generation_s=generation_s,
        accuracy_real=_accuracy(classifier, originals, labels),
        accuracy_reconstructed=_accuracy(classifier, rebuilt, labels),
        accuracy_generated=_accuracy(classifier, drawn, drawn_labels),
    )


def load_judge(path: Path, manifest: Manifest) -> Classifier:
    """The averaged classifier of a checkpoint file or of the newest one in a run folder, in eval mode."""
    if path.is_dir():
        files = checkpoint_files(path)
        if not files:
            raise CheckpointError(f"{path} holds no checkpoint of a classifier")
        path = files[-1]
    state = load_checkpoint(path)
    model = state["recipe"]["model"]
    if "widths" not in model:
        raise CheckpointError(
            f"{path} is no checkpoint of a classifier; `maskbit train classifier` writes one"
        )
    config = from_mapping(ClassifierConfig, model)
    classes = len(manifest.class_names)
    require(
        config.num_classes == classes,
        f"the judge knows {config.num_classes} classes, the bundle has {classes}",
    )
    network = Classifier(config)
    network.load_state_dict(state["ema"])
    return network.eval().requires_grad_(False)


def _originals(shards: str, image_size: int) -> tuple[Pixels, Integers]:
    batches = list(evaluation_batches(shards, image_size, BATCH))
    images = torch.cat([batch.images for batch in batches])
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return pixels, torch.cat([batch.labels for batch in batches]).numpy()


def _reconstruct(runtime: Runtime, originals: Pixels) -> tuple[Pixels, Integers, float]:
    start = time.perf_counter()
    indices = [runtime.encode(originals[i : i + BATCH]) for i in range(0, len(originals), BATCH)]
    rebuilt = [runtime.decode(part) for part in indices]
    seconds = (time.perf_counter() - start) / len(originals)
    return np.concatenate(rebuilt), np.concatenate(indices), seconds


def _generate(
    runtime: Runtime, manifest: Manifest, per_class: int, seed: int
) -> tuple[Pixels, Integers, float | None]:
    """Drawn pictures in class order, their labels, and seconds per picture."""
    size = manifest.image_size
    if manifest.generator is None:
        return np.empty((0, size, size, 3), dtype=np.uint8), np.empty(0, dtype=np.int64), None
    labels = np.repeat(np.arange(manifest.generator.nclass), per_class)
    seeds = range(seed, seed + len(labels))
    start = time.perf_counter()
    parts = []
    for i in range(0, len(labels), BATCH):
        chosen = labels[i : i + BATCH].tolist()
        parts.append(runtime.decode(draw(runtime, manifest, manifest.sampling, chosen, seeds[i : i + BATCH])))
    return np.concatenate(parts), labels, (time.perf_counter() - start) / len(labels)


def _accuracy(judge: Classifier | None, pictures: Pixels, labels: Integers) -> float | None:
    if judge is None or not len(pictures):
        return None
    return accuracy(judge, _floats(pictures), torch.from_numpy(labels))


def _floats(pictures: Pixels) -> Tensor:
    """f32 (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
