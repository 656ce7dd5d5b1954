"""Reference statistics of the pictures of shards."""

from __future__ import annotations

import torch

from models.validation import require
from training.evaluation.feature_sample import FeatureSample
from training.evaluation.observer import REAL, Observer, gathered_sample, to_bytes
from training.evaluation.progress import PictureBar
from training.evaluation.reference import Reference, reference_of_sums
from training.evaluation.setup import Setup
from training.evaluation.shard_slice import RealPictures, ShardSlice
from training.evaluation.tally import Tally, Totals


def reference_of_shards(setup: Setup, pictures: RealPictures) -> tuple[Reference | None, dict[str, float]]:
    """Statistics of `pictures`, and numbers about them: `skipped_samples` and the judge's `accuracy_real`.

    Every process takes each of its batches. Without features there is no reference.
    """
    instruments, settings, ranks = setup.instruments, setup.settings, setup.ranks
    own = ShardSlice(pictures, setup.bundle.manifest.image_size, settings.batch_size, ranks)
    observer = Observer(REAL, instruments, Tally(1), FeatureSample(settings.compared))
    with PictureBar("Reading real pictures", None, shown=ranks.first) as bar:
        for numbers, batch in own.batches():
            block = torch.zeros(len(numbers), dtype=torch.int64)
            observer.add(numbers, block, to_bytes(batch.images), batch.labels)
            bar.advance(len(numbers))
    sums = ranks.summed(observer.tally.sums())
    require(f"{REAL} count" in sums, f"{pictures.shards}: no labelled picture that can be decoded")
    totals = Totals(sums, torch.ones(1))
    sample = gathered_sample(observer.sample, ranks)
    found: dict[str, float] = {"skipped_samples": sum(ranks.gathered(own.skipped))}
    if instruments.judge is not None:
        found["accuracy_real"] = totals.number(f"{REAL} right") / totals.number(f"{REAL} count")
    if instruments.features is None:
        return None, found
    moments = reference_of_sums(totals, REAL)
    return Reference(pictures.shards, moments, sample.tensor(), instruments.features.name), found
