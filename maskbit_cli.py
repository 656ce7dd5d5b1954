"""The `maskbit` command: mounts the commands that each package keeps in its own cli.py."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, NoReturn

import typer

from models.errors import MaskBitError

Entry = tuple[str, str, str]  # module, its Typer application or command function, help
Group = tuple[dict[str, Entry], str]  # commands that several packages keep, help

# imported when the command is called
COMMANDS: dict[str, Entry | Group] = {
    "serve": ("service.cli", "serve", "Start Redis, a worker and the gateway with its page, as one."),
    "gateway": ("service.cli", "gateway", "Start the HTTP gateway alone."),
    "worker": ("service.cli", "worker", "Start a worker alone."),
    "health": ("service.cli", "health", "Say whether the gateway or the worker here is ready."),
    "keys": (
        {"new": ("service.gateway.cli", "keys_new", "Make an API key.")},
        "API keys of the gateway.",
    ),
    "generate": ("service.client.cli", "generate", "Draw pictures of classes, here or by a service."),
    "tokenize": ("models.cli", "tokenize", "Turn a picture into bit tokens, without a server."),
    "detokenize": ("models.cli", "detokenize", "Turn bit tokens into a picture, without a server."),
    "import": ("models.cli", "import_", "Make a bundle of published weights."),
    "inspect": ("models.cli", "inspect", "Say what a bundle holds, and check its files."),
    "train": ("training.cli", "train_app", "Train a tokenizer, a generator or a perceptual network."),
    "data": ("training.data.cli", "data_app", "Make shards of pictures, or a cache of their tokens."),
    "evaluate": ("training.evaluation.cli", "evaluate_app", "Measure the quality of a bundle."),
    "export": ("export.cli", "export_app", "Compile a bundle for runtimes other than PyTorch."),
    "plan": ("service.plan.cli", "plan", "How many workers a load needs, and what saturates first."),
    "chaos": (
        "service.chaos.cli",
        "chaos",
        "Break the service on purpose and check what the queue promises.",
    ),
    "bench": (
        {
            "models": ("service.bench.cli", "bench_models", "Time per picture alone and in a batch."),
            "service": (
                "service.bench.cli",
                "bench_service",
                "Overhead and throughput around an idle model.",
            ),
            "load": ("service.bench.cli", "bench_load", "Step-level batching against whole requests."),
            "redis": ("service.bench.cli", "bench_redis", "Redis commands a picture, memory a waiting job."),
            "steps": ("service.bench.cli", "bench_steps", "Times of a worker's calls, for maskbit plan."),
            "parts": (
                "service.bench.cli",
                "bench_parts",
                "What requests and workers cost Redis and the gateway, for maskbit plan.",
            ),
            "plan": ("service.bench.cli", "bench_plan", "What maskbit plan predicts beside a real load."),
            "soak": ("service.bench.cli", "bench_soak", "Memory over many requests."),
            "abuse": ("service.bench.cli", "bench_abuse", "What hostile clients cost a good one."),
            "training": ("training.cli", "bench_training", "Training from pictures and from a token cache."),
        },
        "Measure the speed of models, service and training on this machine.",
    ),
}


# which extra of pyproject.toml a command needs, other than `cpu`
EXTRAS = {
    "train": "train",
    "data": "train",
    "evaluate": "train",
    "export": "export",
    "bench training": "train",
    "gateway": "gateway",
    "keys": "gateway",
    "worker": "worker",
}


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"maskbit {version('maskbit-serve')}")
        except PackageNotFoundError:
            typer.echo("maskbit, not installed as a package")
        raise typer.Exit


def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """MaskBit: train, compile and serve image generation with bit tokens."""


def build_app(names: Sequence[str]) -> typer.Typer:
    """The application with the commands `names`, whose modules are imported here."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, callback=options)
    for name in names:
        _mount(app, name, COMMANDS[name])
    return app


def _mount(app: typer.Typer, name: str, entry: Entry | Group) -> None:
    if len(entry) == 2:
        commands, text = entry
        group = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
        for member, place in commands.items():
            _mount(group, member, place)
        app.add_typer(group, name=name, help=text)
        return
    module, attribute, text = entry
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        app.add_typer(found, name=name, help=text)
    else:
        app.command(name, help=text)(found)


def main() -> None:
    """Entry point: wrong use and foreseen errors become one line on standard error and exit code 2."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    called = words[0] if words else ""
    try:
        app = build_app([called] if called in COMMANDS else list(COMMANDS))
        code = app(standalone_mode=False, prog_name="maskbit")
    except MaskBitError as exc:
        _fail(str(exc))
    except ModuleNotFoundError as exc:
        extra = EXTRAS.get(" ".join(words[:2])) or EXTRAS.get(called, "cpu")
        _fail(
            f"the package {exc.name} is not installed; '{called}' needs pip install 'maskbit-serve[{extra}]'"
        )
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as exc:
        # Typer brings its own click or uses the installed one: in both, usage errors format themselves.
        if not hasattr(exc, "format_message"):
            raise
        context = getattr(exc, "ctx", None)
        path = context.command_path if context is not None else "maskbit"
        _fail(f"{exc.format_message().rstrip('.')}; see '{path} --help'")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    print(f"maskbit: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
