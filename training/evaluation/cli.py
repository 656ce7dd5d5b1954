"""`maskbit evaluate …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from models.bundle import Manifest
    from models.sampling_config import SamplingConfig
    from training.evaluation.observer import Instruments
    from training.evaluation.ranks import Ranks
    from training.evaluation.reference import Reference
    from training.evaluation.report import Report
    from training.evaluation.setup import Setup

evaluate_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

BundleArgument = Annotated[str, typer.Argument(help="Bundled model, folder or hf://owner/name.")]
FeaturesOption = Annotated[
    str | None,
    typer.Option(help="'inception', or the run folder of `maskbit train perceptual`; none by default."),
]
InceptionOption = Annotated[
    str | None, typer.Option(help="pt_inception-2015-12-05: a path or hf://owner/name/file.")
]
JudgeOption = Annotated[
    Path | None, typer.Option(help="Run folder or checkpoint of a classifier that names the pictures.")
]
ImageColumnOption = Annotated[str, typer.Option(help="Column of the pictures in Parquet files.")]
LabelColumnOption = Annotated[str, typer.Option(help="Column of the class numbers in Parquet files.")]
LimitOption = Annotated[int | None, typer.Option(min=2, help="Use the first pictures of the shards only.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Pictures together.")]
BlocksOption = Annotated[int, typer.Option(min=1, help="Blocks that the intervals resample.")]
BootstrapOption = Annotated[int, typer.Option(min=0, help="Resamples of the intervals; 0 for none.")]
ComparedOption = Annotated[
    int, typer.Option(min=4, help="Pictures of each side whose features precision and recall compare.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
PrecisionOption = Annotated[str, typer.Option(help="Arithmetic of the generator: auto, fp32, bf16 or fp16.")]


@evaluate_app.callback()
def evaluate() -> None:
    """Measure the quality of a bundle."""


@evaluate_app.command()
def tokenizer(
    bundle: BundleArgument,
    shards: Annotated[str, typer.Option(help="Shards of held-out pictures: path, glob or {a..b}.")],
    features: FeaturesOption = None,
    inception_weights: InceptionOption = None,
    judge: JudgeOption = None,
    lpips_backbone: Annotated[Path | None, typer.Option(help="torchvision's VGG16 weights.")] = None,
    lpips_linear: Annotated[Path | None, typer.Option(help="Linear weights of LPIPS 0.1 for VGG.")] = None,
    image_column: ImageColumnOption = "image",
    label_column: LabelColumnOption = "label",
    limit: LimitOption = None,
    batch_size: BatchOption = 64,
    blocks: BlocksOption = 20,
    bootstrap: BootstrapOption = 100,
    compared: ComparedOption = 10_000,
    device: DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option(help="Write report and picture grid to this folder.")] = None,
) -> None:
    """Measure how a tokenizer gives back held-out pictures."""
    from models.bundle import open_bundle
    from models.errors import ConfigError
    from models.runtime.loading import load_runtime
    from models.runtime.torch_runtime import choose_device
    from training.evaluation.ranks import evaluation_ranks, rank_device
    from training.evaluation.setup import EvaluationSettings, Setup
    from training.evaluation.shard_slice import RealPictures
    from training.evaluation.tokenizer_evaluation import evaluate_tokenizer

    if (lpips_backbone is None) != (lpips_linear is None):
        raise ConfigError("LPIPS needs both --lpips-backbone and --lpips-linear")
    lpips = None if lpips_backbone is None or lpips_linear is None else (lpips_backbone, lpips_linear)
    settings = EvaluationSettings(batch_size, blocks, bootstrap, compared)
    opened = open_bundle(bundle)
    with evaluation_ranks() as ranks:
        place = rank_device(device)
        instruments = _instruments(opened.manifest, features, inception_weights, judge, lpips, place)
        runtime = load_runtime(opened, "torch", device=place)
        setup = Setup(opened, runtime, instruments, settings, ranks, choose_device(place))
        pictures = RealPictures(shards, limit, image_column, label_column)
        _print(evaluate_tokenizer(setup, pictures, out=out), ranks)


@evaluate_app.command()
def generator(
    bundle: BundleArgument,
    num_images: Annotated[int, typer.Option(min=2, help="Pictures to draw.")] = 50_000,
    shards: Annotated[str | None, typer.Option(help="Shards of real pictures to compare with.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Saved statistics of real pictures (.npz) instead of shards.")
    ] = None,
    save_reference: Annotated[
        Path | None, typer.Option(help="Write the statistics of --shards to this .npz file.")
    ] = None,
    features: FeaturesOption = None,
    inception_weights: InceptionOption = None,
    judge: JudgeOption = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Sampling parameter, such as steps=32; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="First seed; picture k uses seed + k.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Pictures between two saved states.")] = 1000,
    image_column: ImageColumnOption = "image",
    label_column: LabelColumnOption = "label",
    limit: LimitOption = None,
    batch_size: BatchOption = 64,
    blocks: BlocksOption = 20,
    bootstrap: BootstrapOption = 100,
    compared: ComparedOption = 10_000,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder of state, report and picture grid; continued if it exists.")
    ] = None,
) -> None:
    """Draw pictures and measure them; with --out a killed run continues where it stood."""
    from models.bundle import open_bundle
    from models.errors import ConfigError
    from models.runtime.loading import load_runtime
    from models.runtime.torch_runtime import choose_device
    from training.evaluation.drawing_run import DrawingPlan
    from training.evaluation.generator_evaluation import evaluate_generator
    from training.evaluation.ranks import evaluation_ranks, rank_device
    from training.evaluation.setup import EvaluationSettings, Setup
    from training.evaluation.shard_reference import reference_of_shards
    from training.evaluation.shard_slice import RealPictures

    if shards is not None and reference is not None:
        raise ConfigError("--shards and --reference are two sources of the same statistics; give one")
    if save_reference is not None and (shards is None or features is None):
        raise ConfigError("--save-reference needs --shards and --features")
    opened = open_bundle(bundle)
    plan = DrawingPlan(_overridden(opened.manifest, set_ or []), num_images, seed, save_every)
    settings = EvaluationSettings(batch_size, blocks, bootstrap, compared)
    with evaluation_ranks() as ranks:
        place = rank_device(device)
        instruments = _instruments(opened.manifest, features, inception_weights, judge, None, place)
        runtime = load_runtime(opened, "torch", device=place, precision=precision)
        setup = Setup(opened, runtime, instruments, settings, ranks, choose_device(place))
        if shards is not None:
            pictures = RealPictures(shards, limit, image_column, label_column)
            found, real = reference_of_shards(setup, pictures)
        else:
            found, real = _saved_reference(setup, reference), {}
        if save_reference is not None and found is not None and ranks.first:
            found.save(save_reference)
        _print(evaluate_generator(setup, plan, reference=found, real=real, out=out), ranks)


def _overridden(manifest: Manifest, overrides: list[str]) -> SamplingConfig:
    """The bundle's sampling with `key=value` overrides, whose values are JSON or plain words."""
    from dataclasses import asdict

    from models.errors import ConfigError
    from models.sampling_config import SamplingConfig
    from models.validation import from_mapping

    values = asdict(manifest.sampling)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override!r}; the form is key=value")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return from_mapping(SamplingConfig, values)


def _instruments(
    manifest: Manifest,
    features: str | None,
    inception_weights: str | None,
    judge: Path | None,
    lpips: tuple[Path, Path] | None,
    device: str,
) -> Instruments:
    from models.runtime.torch_runtime import choose_device
    from training.evaluation.feature_network import open_features
    from training.evaluation.judge import Judge
    from training.evaluation.observer import Instruments
    from training.losses.lpips import load_lpips

    place = choose_device(device)
    return Instruments(
        features=None if features is None else open_features(features, inception_weights, place),
        judge=None if judge is None else Judge(judge, len(manifest.class_names), place),
        lpips=None if lpips is None else load_lpips(*lpips).to(place),
    )


def _saved_reference(setup: Setup, file: Path | None) -> Reference | None:
    import torch

    from models.errors import ConfigError
    from training.evaluation.reference import read_reference

    if file is None:
        return None
    features, size = setup.instruments.features, setup.bundle.manifest.image_size
    if features is None:
        raise ConfigError("--reference holds statistics of features; say which with --features")
    found = features(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    sizes = {"pooled": found.pooled.shape[1], "spatial": found.spatial.shape[1]}
    return read_reference(file, features.name, sizes)


def _print(report: Report, ranks: Ranks) -> None:
    if ranks.first:
        typer.echo(report.to_markdown())
