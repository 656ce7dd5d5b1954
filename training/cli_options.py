"""Arguments that several commands share."""

from typing import Annotated

import typer

RecipeArgument = Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that is included.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as training.max_train_steps=500.")
]
