"""`maskbit train …`, `maskbit data …` and `maskbit evaluate …`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from training.config import Recipe

train_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
evaluate_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


class Precision(StrEnum):
    """How weights are stored in a bundle."""

    FP32 = "fp32"
    FP16 = "fp16"


RecipeArgument = Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that is included.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as training.max_train_steps=500.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")]
BundleOut = Annotated[Path | None, typer.Option("--bundle", help="Write the trained bundle to this folder.")]
Licence = Annotated[str, typer.Option(help="Licence of the weights, as the bundle will state it.")]
Stored = Annotated[Precision, typer.Option(help="Precision of the bundle's weights.")]


@train_app.callback()
def train() -> None:
    """Train a tokenizer, then a generator on its tokens; a classifier judges their pictures."""


@train_app.command()
def tokenizer(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Resume = False,
    bundle: BundleOut = None,
    licence: Licence = "not stated",
    precision: Stored = Precision.FP32,
) -> None:
    """Train a tokenizer (stage I)."""
    from training.config import TokenizerRecipe
    from training.publish import publish_tokenizer, tokenizer_manifest
    from training.tokenizer_loop import train_tokenizer

    plan = _recipe("tokenizer", recipe, overrides)
    assert isinstance(plan, TokenizerRecipe)
    if bundle is not None:
        tokenizer_manifest(plan, bundle.name, licence)  # what is wrong here should not surface after hours
    network = train_tokenizer(plan, resume=resume)
    if bundle is not None:
        typer.echo(publish_tokenizer(network, plan, bundle, licence=licence, precision=precision).path)


@train_app.command()
def generator(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Resume = False,
    bundle: BundleOut = None,
    licence: Licence = "not stated",
    precision: Stored = Precision.FP32,
) -> None:
    """Train a generator (stage II) on the tokens of the tokenizer that `model.tokenizer` names."""
    from training.config import GeneratorRecipe
    from training.generator_loop import train_generator
    from training.publish import generator_manifest, publish_generator

    plan = _recipe("generator", recipe, overrides)
    assert isinstance(plan, GeneratorRecipe)
    if bundle is not None:
        generator_manifest(plan, bundle.name, licence)  # what is wrong here should not surface after hours
    network = train_generator(plan, resume=resume)
    if bundle is not None:
        typer.echo(publish_generator(network, plan, bundle, licence=licence, precision=precision).path)


@train_app.command()
def classifier(recipe: RecipeArgument, overrides: Overrides = None, resume: Resume = False) -> None:
    """Train a classifier, the judge of `maskbit evaluate`."""
    from training.classifier_loop import train_classifier
    from training.config import ClassifierRecipe

    plan = _recipe("classifier", recipe, overrides)
    assert isinstance(plan, ClassifierRecipe)
    train_classifier(plan, resume=resume)
    typer.echo(plan.folder)


def _recipe(kind: str, path: str, overrides: list[str] | None) -> Recipe:
    from training.recipes import build_recipe, load_values

    return build_recipe(kind, load_values(path, overrides or []))


@data_app.callback()
def data() -> None:
    """Make WebDataset shards to train on."""


@data_app.command()
def folder(
    source: Annotated[Path, typer.Argument(help="Folder with one sub-folder of pictures per class.")],
    out: Annotated[Path, typer.Argument(help="New or empty folder for the shards.")],
    image_size: Annotated[
        int | None, typer.Option(help="Resize and centre-crop to this many pixels; untouched by default.")
    ] = None,
    val_share: Annotated[float, typer.Option(help="Share of each class that is held out.")] = 0.1,
    samples_per_shard: Annotated[int, typer.Option(help="Pictures in a shard.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of split and order.")] = 0,
) -> None:
    """Turn a folder of pictures into train and validation shards."""
    from training.folder import shards_from_folder

    report = shards_from_folder(
        source,
        out,
        image_size=image_size,
        val_share=val_share,
        samples_per_shard=samples_per_shard,
        seed=seed,
    )
    typer.echo(
        f"{out}: {len(report.classes)} classes, {report.train} training and {report.val} validation "
        f"pictures, {len(report.skipped)} files skipped"
    )


@data_app.command()
def synthetic(
    out: Annotated[Path, typer.Argument(help="New or empty folder for the shards.")],
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 8,
    per_class: Annotated[int, typer.Option(help="Training pictures of each class.")] = 200,
    val_per_class: Annotated[int, typer.Option(help="Validation pictures of each class.")] = 20,
    image_size: Annotated[int, typer.Option(help="Pixels along each side.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all pictures.")] = 0,
) -> None:
    """Draw a small labelled data set: balloons, boats, fish, flowers, hearts, houses, …"""
    from training.synthetic import synthetic_shards

    names = synthetic_shards(
        out,
        classes=classes,
        per_class=per_class,
        val_per_class=val_per_class,
        image_size=image_size,
        seed=seed,
    )
    typer.echo(
        f"{out}: {per_class} training and {val_per_class} validation pictures each of {', '.join(names)}"
    )


@evaluate_app.callback()
def evaluate() -> None:
    """Measure the quality of a bundle."""


@evaluate_app.command("bundle")
def evaluate_bundle_command(
    bundle: Annotated[str, typer.Argument(help="Bundled model, folder or hf://owner/name.")],
    shards: Annotated[str, typer.Option(help="Shards of held-out pictures: path, glob or {a..b}.")],
    judge: Annotated[
        Path | None, typer.Option(help="Run folder or checkpoint of `maskbit train classifier`.")
    ] = None,
    per_class: Annotated[int, typer.Option(help="Pictures to draw of each class.")] = 25,
    seed: Annotated[int, typer.Option(min=0, help="First seed; picture k uses seed + k.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    grid: Annotated[Path | None, typer.Option(help="Write a grid of pictures to this PNG file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers to this JSON file.")] = None,
) -> None:
    """Measure reconstructions of held-out pictures, and pictures that the bundle draws."""
    from dataclasses import asdict
    from json import dumps

    from models.bundle import open_bundle
    from training.evaluation import evaluate_bundle

    report = asdict(
        evaluate_bundle(
            open_bundle(bundle), shards, judge=judge, per_class=per_class, seed=seed, device=device, grid=grid
        )
    )
    for key, value in report.items():
        if value is not None:
            typer.echo(f"{key:23} {value:.4g}" if isinstance(value, float) else f"{key:23} {value}")
    if json is not None:
        json.write_text(dumps(report, indent=2) + "\n", encoding="utf-8")
