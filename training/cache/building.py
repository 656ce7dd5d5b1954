"""Pixels to tokens: builds a token cache (`maskbit data cache`).

The cache grows part by part, each of them a function of the plan alone, and a part that is complete has a
report beside it: a build that was killed is completed by the next one of the same plan, on any number of
processes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from models.errors import ConfigError
from models.tokenizer import Tokenizer
from models.validation import from_mapping, require
from models.whole_file import write_whole
from training.cache.manifest import (
    BUILD_PLAN,
    CROP_SETTINGS,
    MANIFEST,
    CacheManifest,
    CachePlan,
    Part,
    as_json,
)
from training.cache.part_builder import PartBuilder
from training.cache.token_cache import npy_bytes, read_manifest, tokenizer_digest
from training.data.sample import Shard
from training.data.sources import find_shards
from training.frozen_tokenizer import load_frozen_tokenizer
from training.processes import processes
from training.recipe import GeneratorRecipe

SAMPLES_PER_PART = 2048
REPORTS = "part-*.json"


@dataclass(frozen=True)
class BuildReport:
    """A finished cache: `encoded` of its pictures were made in `seconds`, the others were there before."""

    manifest: CacheManifest
    encoded: int
    seconds: float

    def __str__(self) -> str:
        plan, pictures = self.manifest.plan, self.manifest.pictures
        size = pictures * plan.record.itemsize / 1e6
        made = f"{self.encoded} encoded at {self.encoded / self.seconds:.3g} pictures/s"
        return (
            f"{pictures} pictures in {plan.variants} crops of {plan.bytes_per_crop} bytes, {size:.3g} MB; "
            f"{self.manifest.skipped} samples skipped; {made if self.encoded else 'all were there before'}"
        )


def build_cache(recipe: GeneratorRecipe, out: Path, *, crops: int, store_flips: bool) -> BuildReport | None:
    """Build, or complete, the cache of the recipe's training pictures in the folder `out`.

    All processes call this together; those other than the main one get None. ConfigError when `out` holds
    something else, when a label is not one of the recipe's classes, or when a file cannot be written.
    """
    data = recipe.dataset
    shards = find_shards(
        data.train_shards_path_or_url, image_column=data.image_column, label_column=data.label_column
    )
    with processes(replace(recipe.training, mixed_precision="no", enable_tf32=False)) as accelerator:
        tokenizer = load_frozen_tokenizer(recipe, accelerator.device)
        plan = make_plan(recipe, tokenizer, [shard.name for shard in shards], crops, store_flips)
        with accelerator.main_process_first():
            claim_cache(out, plan)
        began = time.perf_counter()
        with closing(PartBuilder(data, plan, tokenizer, accelerator.device)) as builder:
            if not (out / MANIFEST).exists():
                build_share(builder, out, shards, accelerator)
        encoded: list[int] = gather_object([builder.encoded])
        if not accelerator.is_main_process:
            return None
        return BuildReport(complete_cache(out), sum(encoded), time.perf_counter() - began)


def make_plan(
    recipe: GeneratorRecipe, tokenizer: Tokenizer, shards: list[str], crops: int, store_flips: bool
) -> CachePlan:
    """The plan for `crops` crops of each picture; ConfigError where that makes no sense for the recipe."""
    data, model = recipe.dataset, recipe.model
    require(
        data.flip or not store_flips,
        "both mirror images are asked for, but dataset.preprocessing.flip is off",
    )
    require(
        crops == 1 or data.use_random_crop,
        f"{crops} crops are asked for, but dataset.preprocessing.use_random_crop is off: all would be one",
    )
    return CachePlan(
        bits=model.bits,
        grid=model.grid,
        classes=model.nclass,
        crops=crops,
        flips="stored" if store_flips else "drawn" if data.flip else "none",
        preprocessing={key: getattr(data, key) for key in CROP_SETTINGS},
        tokenizer=tokenizer_digest(tokenizer),
        tokenizer_config=asdict(tokenizer.config),
        shards=tuple(shards),
        samples_per_part=SAMPLES_PER_PART,
        seed=recipe.training.seed,
    )


def claim_cache(out: Path, plan: CachePlan) -> None:
    """Begin the cache of `plan` in `out`, or go on with it; ConfigError when `out` holds anything else."""
    text = as_json(asdict(plan))
    stored = _stored_plan(out)
    if stored is not None:
        differs = [key for key, value in json.loads(text).items() if stored.get(key) != value]
        require(
            not differs, f"{out} holds a token cache with other {', '.join(differs)}; give another folder"
        )
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"{out} cannot be made: {exc.strerror}") from exc
    found = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    require(not found, f"{out} is not empty (it holds {', '.join(found[:3])}); give a new or an empty folder")
    write_whole(out / BUILD_PLAN, text.encode())


def _stored_plan(out: Path) -> dict[str, Any] | None:
    for name in (MANIFEST, BUILD_PLAN):
        if (out / name).is_file():
            try:
                values = json.loads((out / name).read_text(encoding="utf-8"))
                plan: dict[str, Any] = values["plan"] if name == MANIFEST else values
                return dict(plan)
            except (OSError, ValueError, TypeError, KeyError) as exc:
                raise ConfigError(f"{out / name} cannot be read: {exc!r}") from exc
    return None


def build_share(builder: PartBuilder, out: Path, shards: list[Shard], accelerator: Accelerator) -> None:
    """Build those of this process's parts that are missing in `out`.

    The parts of a shard go round the processes, so that few large shards occupy all of them too.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    with progress(accelerator) as bar:
        task = bar.add_task("", total=None)
        for number, shard in enumerate(shards):
            bar.update(task, description=f"shard {number + 1} of {len(shards)}")
            for index in count((rank - number) % world, world):
                part = read_report(out, number, index)
                if part is not None:
                    bar.advance(task, part.pictures)
                else:
                    part = build_part(builder, out, shard, number, index, partial(bar.advance, task))
                if part.samples < SAMPLES_PER_PART:
                    break


def build_part(
    builder: PartBuilder,
    out: Path,
    shard: Shard,
    number: int,
    index: int,
    advance: Callable[[int], object],
) -> Part:
    """Write part `index` of shard `number`, then its report; beyond the end of the shard the report alone."""
    start = index * SAMPLES_PER_PART
    records, samples = builder.records(shard, number, range(start, start + SAMPLES_PER_PART), advance)
    data = npy_bytes(records)
    name = part_name(number, index)
    part = Part(f"{name}.npy", samples, len(records), sha256(data).hexdigest())
    if samples:
        write_whole(out / part.file, data)
    write_whole(out / f"{name}.json", as_json(asdict(part)).encode())
    return part


def read_report(out: Path, number: int, index: int) -> Part | None:
    """The part of a former build, if it was completed."""
    report = out / f"{part_name(number, index)}.json"
    return parse_report(report) if report.exists() else None


def complete_cache(out: Path) -> CacheManifest:
    """Write the manifest over all parts, if that is not done yet; the reports have served then.

    Raises ConfigError when there is no picture in any part.
    """
    if not (out / MANIFEST).exists():
        plan = from_mapping(CachePlan, json.loads((out / BUILD_PLAN).read_text(encoding="utf-8")))
        parts = tuple(parse_report(report) for report in sorted(out.glob(REPORTS)))
        manifest = CacheManifest(plan, tuple(part for part in parts if part.samples))
        write_whole(out / MANIFEST, manifest.to_json().encode())
    for file in (out / BUILD_PLAN, *out.glob(REPORTS)):
        file.unlink(missing_ok=True)
    return read_manifest(out)


def parse_report(report: Path) -> Part:
    """The part that a report tells of; ConfigError for a damaged report."""
    try:
        return from_mapping(Part, json.loads(report.read_text(encoding="utf-8")))
    except (OSError, ValueError, ConfigError) as exc:
        raise ConfigError(f"{report} cannot be read: {exc}; remove it to build this part again") from exc


def part_name(number: int, index: int) -> str:
    """File name, without suffix, of part `index` of shard `number`."""
    return f"part-{number:06d}-{index:06d}"


def progress(accelerator: Accelerator) -> Progress:
    """A bar that counts the pictures of the main process; their number is not known before."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} pictures"),
        TimeElapsedColumn(),
        disable=not accelerator.is_main_process,
    )
