"""Judge a bundle's generator by many pictures that it draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.drawing import generator_of
from models.schedule import forward_passes, plan_steps
from models.validation import require
from training.evaluation.bootstrap import Measure, estimates
from training.evaluation.drawing_folder import DrawingFolder
from training.evaluation.drawing_run import DrawingPlan, DrawingRun
from training.evaluation.measures import (
    add_manifolds,
    distance_measure,
    manifold_measures,
    mean_measures,
    score_measure,
)
from training.evaluation.observer import FAKE, REAL, Instruments
from training.evaluation.reference import Reference
from training.evaluation.report import Report, published_scores, size_warnings, usual_warnings
from training.evaluation.setup import Setup

DISTANCES = {"pooled": "fid", "spatial": "sfid"}


def evaluate_generator(
    setup: Setup,
    plan: DrawingPlan,
    *,
    reference: Reference | None = None,
    real: Mapping[str, float] | None = None,
    out: Path | None = None,
) -> Report:
    """Draw and measure the pictures of `plan`; all processes get the same report.

    What compares with real pictures needs `reference`; `real` holds numbers about those for the report.
    `out` keeps the state of the run, and gets the report and a grid of pictures; it is continued when it
    holds a run of the same configuration, else refused with a ConfigError.
    """
    instruments = setup.instruments
    _check(setup, plan)
    description = _described(setup, plan)
    tally, sample = DrawingRun(setup, plan, _folder(out, description, setup)).finish()
    if instruments.features is not None and reference is not None and reference.sample is not None:
        add_manifolds(tally, reference.sample, sample, setup.device)
    sums = tally.sums()
    measures = _measures(instruments, reference, setup.device)
    report = Report(
        kind="generator",
        bundle=setup.bundle.ref,
        pictures=plan.pictures,
        settings={**description, "reference": None if reference is None else reference.source},
        measures=estimates(sums, sums[f"{FAKE} count"], measures, setup.settings.replicates),
        costs={**(real or {}), **_costs(plan, sums)},
        warnings=tuple(_warnings(setup, plan, reference, sums)),
        published=published_scores("generator"),
    )
    if setup.ranks.first and out is not None:
        report.save(out)
    return report


def _check(setup: Setup, plan: DrawingPlan) -> None:
    """Raise what is wrong before pictures are drawn for hours."""
    generator = generator_of(setup.bundle.manifest)
    plan_steps(plan.sampling, generator.num_groups)
    instruments, ranks, blocks = setup.instruments, setup.ranks, setup.settings.blocks
    require(
        ranks.count <= blocks,
        f"{ranks.count} processes cannot share {blocks} blocks of pictures; give --blocks {ranks.count} or a "
        "multiple of it, or fewer processes",
    )
    require(
        instruments.features is not None or instruments.judge is not None,
        "there is nothing to measure drawn pictures with; give features or a judge",
    )


def _described(setup: Setup, plan: DrawingPlan) -> dict[str, Any]:
    """Everything that the sums of a run depend on, which `replicates` is not."""
    return {
        "bundle": setup.bundle.ref,
        "runtime": f"{setup.runtime.name} {setup.runtime.precision}",
        **{f"sampling.{key}": value for key, value in asdict(plan.sampling).items()},
        **{key: value for key, value in asdict(plan).items() if key != "sampling"},
        **setup.instruments.names(),
        **{key: value for key, value in asdict(setup.settings).items() if key != "replicates"},
    }


def _folder(out: Path | None, description: Mapping[str, Any], setup: Setup) -> DrawingFolder | None:
    if out is None:
        return None
    folder = DrawingFolder(out, description)
    setup.ranks.wait()  # all have looked before one writes
    if setup.ranks.first:
        folder.claim()
    setup.ranks.wait()
    return folder


def _measures(
    instruments: Instruments, reference: Reference | None, device: torch.device
) -> dict[str, Measure]:
    found: dict[str, Measure] = {}
    if instruments.features is not None:
        if reference is not None:
            for kind in reference.moments:
                found[DISTANCES[kind]] = distance_measure(reference, FAKE, kind, device)
        found["inception_score"] = score_measure(FAKE)
        if reference is not None and reference.sample is not None:
            found |= manifold_measures()
    if instruments.judge is not None:
        found["accuracy_generated"] = mean_measures(["right"], FAKE, f"{FAKE} count")["right"]
    return found


def _costs(plan: DrawingPlan, sums: Mapping[str, Tensor]) -> dict[str, float]:
    passes = forward_passes(plan.sampling)
    return {
        "seconds_per_image": float(sums[f"{FAKE} seconds"].sum()) / plan.pictures,
        "forward_passes_per_image": passes.total,
        "forward_passes_saved_per_image": passes.saved,
    }


def _warnings(
    setup: Setup, plan: DrawingPlan, reference: Reference | None, sums: Mapping[str, Tensor]
) -> list[str]:
    found = usual_warnings(setup.instruments.features, setup.bundle.manifest)
    if setup.instruments.features is not None and reference is not None:
        sizes = {kind: sums[f"{FAKE} {kind}"].shape[1] for kind in reference.moments}
        counts = {"drawn": plan.pictures, REAL: reference.moments["pooled"].count}
        found += size_warnings(counts, sizes)
    return found
