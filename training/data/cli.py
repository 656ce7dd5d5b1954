"""`maskbit data …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.cli_options import Overrides, RecipeArgument

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@data_app.callback()
def data() -> None:
    """Make WebDataset shards to train on, or a cache of their tokens."""


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
    from training.data.folder_import import shards_from_folder

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
    from training.data.synthetic import synthetic_shards

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


@data_app.command()
def cache(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option(help="Folder of the cache: new, empty, or of a build that stopped.")],
    overrides: Overrides = None,
    crops: Annotated[int, typer.Option(min=1, help="Crops of each picture.")] = 4,
    flips: Annotated[
        bool, typer.Option("--flips", help="Store both mirror images of each crop, not one drawn of them.")
    ] = False,
) -> None:
    """Turn the training pictures of a generator's recipe into tokens, for dataset.params.token_cache.

    For several GPUs or nodes: accelerate launch -m maskbit_cli data cache …
    """
    from training.cache.building import build_cache
    from training.recipe import GeneratorRecipe
    from training.recipe_file import build_recipe, load_values

    plan = build_recipe("generator", load_values(recipe, overrides or []))
    assert isinstance(plan, GeneratorRecipe)
    report = build_cache(plan, out, crops=crops, store_flips=flips)
    if report is not None:
        typer.echo(f"{out}: {report}")
