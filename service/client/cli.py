"""`maskbit generate`: pictures drawn in this process, or large sets of them drawn by a running service."""

from __future__ import annotations

import os
import secrets
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

API_KEY_VARIABLE = "MASKBIT_API_KEY"


def generate(
    classes: Annotated[
        list[str],
        typer.Option("--class", "--classes", help="Class name, number, or numbers as 0-15,20; repeatable."),
    ],
    n: Annotated[int, typer.Option("--n", "--per-class", min=1, help="Pictures of each class.")] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, help="First seed; picture k of a class uses seed + k.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="This and what follows: the bundle's if left out.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=0, max=30, help="0 is without guidance.")
    ] = None,
    guidance_annealing: Annotated[str | None, typer.Option(help="none, linear or cosine.")] = None,
    guidance_pow: Annotated[float | None, typer.Option(max=10, help="Of the cosine.")] = None,
    guidance_cutoff: Annotated[float | None, typer.Option(min=0, help="Skip guidance up to here.")] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None, typer.Option(help="Guide only between these shares of the steps.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0.01, max=10, help="Of the softmax.")] = None,
    anneal_temperature: Annotated[bool | None, typer.Option(help="Temperature from 1.3 to 0.5.")] = None,
    noise_temperature: Annotated[
        float | None, typer.Option(min=0, max=100, help="Of the confidence.")
    ] = None,
    mask_schedule: Annotated[str | None, typer.Option(help="arccos, cosine, linear, square or root.")] = None,
    group_order: Annotated[str | None, typer.Option(help="confidence or halton.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the PNG files.")] = Path("pictures"),
    bundle: Annotated[
        str | None, typer.Option(help="Without --server: bundled model, folder or hf://owner/name.")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="Without --server: auto, torch, onnx, tensorrt, triton or noop.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Without --server: auto, cpu or cuda.")] = None,
    server: Annotated[
        str | None, typer.Option(help=f"Address of a service that draws; its key in {API_KEY_VARIABLE}.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="With --server: one of its models.")] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, max=256, help="With --server: requests at a time.")
    ] = None,
) -> None:
    """Draw pictures of classes into PNG files, here or with --server by a service.

    With --server, a set of any size goes through the queue in the background and may be interrupted: the same
    command goes on where it stopped. docs/sampling.md tells what the options of sampling do.
    """
    from models.errors import InputError

    given = {
        "steps": steps,
        "guidance_scale": guidance_scale,
        "guidance_annealing": guidance_annealing,
        "guidance_pow": guidance_pow,
        "guidance_cutoff": guidance_cutoff,
        "guidance_interval": guidance_interval,
        "temperature": temperature,
        "anneal_temperature": anneal_temperature,
        "noise_temperature": noise_temperature,
        "mask_schedule": mask_schedule,
        "group_order": group_order,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if server is not None:
        if any(one is not None for one in (bundle, runtime, device)):
            raise InputError(
                "--bundle, --runtime and --device are the service's own with --server; use --model"
            )
        _draw_by(server, model, classes, n, seed, options, out, parallel)
        return
    if model is not None or parallel is not None:
        raise InputError("--model and --parallel are for --server; without it use --bundle")
    _draw_here(bundle or "fruit", runtime or "auto", device or "auto", classes, n, seed, options, out)


def _draw_here(
    bundle: str,
    runtime_name: str,
    device: str,
    classes: list[str],
    n: int,
    seed: int | None,
    options: dict[str, Any],
    out: Path,
) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from models.bundle import open_bundle
    from models.classes import find_classes
    from models.errors import InputError
    from models.local_drawing import MAX_PICTURES, draw_files, make_folder, sampling_of
    from models.noise import check_seed
    from models.runtime.loading import load_runtime
    from models.schedule import forward_passes

    opened = open_bundle(bundle)
    sampling = sampling_of(opened, options)
    first = secrets.randbelow(2**31) if seed is None else seed
    ids = [class_id for one in classes for class_id in find_classes(opened.manifest.class_names, one)]
    if len(ids) * n > MAX_PICTURES:
        raise InputError(
            f"{len(ids)} classes with --n {n} are {len(ids) * n} pictures; at most {MAX_PICTURES} are drawn "
            "at once here; 'maskbit serve' and --server draw any number"
        )
    labels, seeds = [one for one in ids for _ in range(n)], [first + k for _ in ids for k in range(n)]
    # Wrong numbers and folders are told before the weights are loaded.
    check_seed(first + n - 1)
    make_folder(out)
    runtime = load_runtime(opened, runtime_name, device=device)
    started = time.perf_counter()
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("Drawing", total=sampling.steps)
        for path in draw_files(
            runtime, opened, sampling, labels, seeds, out, lambda done: bar.update(task, completed=done)
        ):
            typer.echo(path)
    passes = forward_passes(sampling)
    typer.echo(
        f"drawn in {time.perf_counter() - started:.1f} s; forward passes a picture: {passes.total} "
        f"({passes.conditional} conditional, {passes.unconditional} unconditional, {passes.saved} saved)",
        err=True,
    )


def _draw_by(
    server: str,
    model: str | None,
    classes: list[str],
    n: int,
    seed: int | None,
    options: dict[str, Any],
    out: Path,
    parallel: int | None,
) -> None:
    from rich.console import Console

    from models.classes import find_classes
    from service.client.drawing import draw_with_progress
    from service.client.picture_set import PictureSet, SetPlan, read_plan
    from service.client.remote import Remote

    console = Console(stderr=True)
    # Of the console that has the progress bar, which stays below.
    tell = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    remote = Remote(server, os.environ.get(API_KEY_VARIABLE), on_wait=tell)
    try:
        info, names = remote.info(model), remote.class_names(model)
        ids = [class_id for one in classes for class_id in find_classes(names, one)]
        known = read_plan(out)
        first = seed if seed is not None else known.seed if known else secrets.randbelow(2**31)
        pictures = PictureSet(out, SetPlan(info["bundle"], first, n, options), ids, names)
        pictures.begin()
        draw_with_progress(remote, pictures, info, parallel, console)
    finally:
        remote.close()
    typer.echo(f"{len(pictures)} pictures in {out}")
