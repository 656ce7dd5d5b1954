"""`maskbit train …`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from training.cli_options import Overrides, RecipeArgument

if TYPE_CHECKING:
    from models.bundle import Bundle
    from training.recipe import Recipe

    R = TypeVar("R", bound=Recipe)

train_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


class Precision(StrEnum):
    """How weights are stored in a bundle."""

    FP32 = "fp32"
    FP16 = "fp16"


Resume = Annotated[bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")]
BundleOut = Annotated[Path | None, typer.Option("--bundle", help="Write the trained bundle to this folder.")]
Licence = Annotated[str, typer.Option(help="Licence of the weights, as the bundle will state it.")]
Stored = Annotated[Precision, typer.Option(help="Precision of the bundle's weights.")]


@train_app.callback()
def train() -> None:
    """Train a tokenizer, then a generator on its tokens; a perceptual network helps and judges both.

    For several GPUs or nodes: accelerate launch -m maskbit_cli train …
    """


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
    from models.bundle_writer import check_place
    from training.publish import publish_tokenizer, tokenizer_manifest
    from training.recipe import TokenizerRecipe
    from training.tokenizer_loop import train_tokenizer

    plan = _recipe("tokenizer", TokenizerRecipe, recipe, overrides)
    if bundle is not None:  # what is wrong here should not surface after hours
        check_place(bundle)
        tokenizer_manifest(plan, bundle.resolve().name, licence)
    network = train_tokenizer(plan, resume=resume or plan.experiment.resume)
    if bundle is not None and _is_main_process():
        _tell(publish_tokenizer(network, plan, bundle, licence=licence, precision=precision))


@train_app.command()
def generator(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Resume = False,
    bundle: BundleOut = None,
    licence: Licence = "not stated",
    precision: Stored = Precision.FP32,
) -> None:
    """Train a generator (stage II) on the tokens of the tokenizer that experiment.vqgan_checkpoint names."""
    from models.bundle_writer import check_place
    from training.generator_loop import train_generator
    from training.publish import generator_manifest, publish_generator
    from training.recipe import GeneratorRecipe

    plan = _recipe("generator", GeneratorRecipe, recipe, overrides)
    if bundle is not None:  # what is wrong here should not surface after hours
        check_place(bundle)
        generator_manifest(plan, bundle.resolve().name, licence)
    network = train_generator(plan, resume=resume or plan.experiment.resume)
    if bundle is not None and _is_main_process():
        _tell(publish_generator(network, plan, bundle, licence=licence, precision=precision))


@train_app.command()
def perceptual(recipe: RecipeArgument, overrides: Overrides = None, resume: Resume = False) -> None:
    """Train a classifier on your own shards: the perceptual network of stage I, the judge of evaluation."""
    from training.classifier_loop import train_classifier
    from training.recipe import ClassifierRecipe

    plan = _recipe("classifier", ClassifierRecipe, recipe, overrides)
    train_classifier(plan, resume=resume or plan.experiment.resume)
    if _is_main_process():
        typer.echo(plan.folder)


def bench_training(
    recipe: RecipeArgument = "fruit_generator",
    overrides: Overrides = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Token cache of `maskbit data cache`; by default one is made and removed."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed in a round.")] = 30,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of either kind, in turns.")] = 3,
) -> None:
    """Training steps of a generator from pictures and from a token cache, side by side."""
    from training.bench import bench
    from training.recipe import GeneratorRecipe

    plan = _recipe("generator", GeneratorRecipe, recipe, overrides)
    for line in bench(plan, cache, steps=steps, rounds=rounds):
        typer.echo(line)


def _recipe(kind: str, cls: type[R], path: str, overrides: list[str] | None) -> R:
    from training.recipe_file import build_recipe, load_values

    plan = build_recipe(kind, load_values(path, overrides or []))
    assert isinstance(plan, cls)
    return plan


def _is_main_process() -> bool:
    """Whether this is the one of the processes started together that writes what they made."""
    import os

    return os.environ.get("RANK", "0") == "0"


def _tell(bundle: Bundle) -> None:
    typer.echo(bundle.path)
