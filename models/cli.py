"""Commands that use a bundle directly, without a server."""

from __future__ import annotations

import json
import secrets
import time
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import typer

BundleOption = Annotated[str, typer.Option(help="Bundled model, folder or hf://owner/name.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def generate(
    class_: Annotated[list[str], typer.Option("--class", help="Class name or number; repeatable.")],
    n: Annotated[int, typer.Option("--n", min=1, max=256, help="Pictures of each class.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="First seed; picture k uses seed + k.")] = None,
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
    bundle: BundleOption = "fruit",
    device: DeviceOption = "auto",
) -> None:
    """Draw pictures of one or more classes into PNG files named after class and seed.

    docs/sampling.md tells what the options of sampling do.
    """
    from dataclasses import replace

    from PIL import Image
    from rich.console import Console
    from rich.progress import Progress

    from models.bundle import open_bundle
    from models.classes import find_class
    from models.drawing import draw, generator_of
    from models.noise import check_seed
    from models.runtime.loading import load_runtime
    from models.schedule import forward_passes, plan_steps

    opened = open_bundle(bundle)
    manifest = opened.manifest
    config = generator_of(manifest)
    options: dict[str, Any] = {
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
    given = {name: value for name, value in options.items() if value is not None}
    sampling = replace(manifest.sampling, **given)
    first = secrets.randbelow(2**31) if seed is None else seed
    labels = [find_class(manifest.class_names, name) for name in class_ for _ in range(n)]
    seeds = [first + k for _ in class_ for k in range(n)]
    # Wrong numbers and folders are told before the weights are loaded.
    check_seed(first + n - 1)
    plan_steps(sampling, config.num_tokens * config.codebook_splits)
    _make_folder(out)
    runtime = load_runtime(opened, device=device)

    started = time.perf_counter()
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("Drawing", total=sampling.steps)
        grids = draw(
            runtime, manifest, sampling, labels, seeds, on_step=lambda done: bar.update(task, completed=done)
        )
    pictures = runtime.decode(grids)
    seconds = time.perf_counter() - started
    for label, number, picture in zip(labels, seeds, pictures, strict=True):
        path = out / f"{manifest.class_names[label].replace('/', '_')}-{number}.png"
        file = BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        _write(path, file.getvalue())
        typer.echo(path)
    passes = forward_passes(sampling)
    typer.echo(
        f"drawn in {seconds:.1f} s; forward passes a picture: {passes.total} "
        f"({passes.conditional} conditional, {passes.unconditional} unconditional, {passes.saved} saved)",
        err=True,
    )


def tokenize(
    picture: Annotated[Path, typer.Argument(help="Picture file; resized and centre-cropped.")],
    out: Annotated[Path | None, typer.Option(help="JSON file; standard output by default.")] = None,
    bundle: BundleOption = "fruit",
    device: DeviceOption = "auto",
) -> None:
    """Write the bit tokens of a picture as JSON."""
    from models import bits
    from models.bundle import open_bundle
    from models.images import read_picture
    from models.runtime.loading import load_runtime

    opened = open_bundle(bundle)
    manifest = opened.manifest
    pixels = read_picture(picture, manifest.image_size)
    indices = load_runtime(opened, device=device).encode(pixels[None])[0]
    width = manifest.tokenizer.bits
    text = json.dumps(
        {
            "model": manifest.name,
            "grid": list(indices.shape),
            "bits_per_token": width,
            "bit_order": "lsb-first",
            "tokens": bits.to_strings(indices, width),
            "indices": indices.tolist(),
        }
    )
    if out is None:
        typer.echo(text)
    else:
        _write(out, text.encode())
        typer.echo(f"{indices.size} tokens of {width} bits in {out}")


def detokenize(
    tokens: Annotated[Path, typer.Argument(help="JSON file as 'maskbit tokenize' writes it.")],
    out: Annotated[Path, typer.Option(help="Picture file; its suffix gives the format.")],
    bundle: BundleOption = "fruit",
    device: DeviceOption = "auto",
) -> None:
    """Draw the picture that bit tokens stand for."""
    from PIL import Image

    from models.bundle import open_bundle
    from models.errors import InputError
    from models.images import read_tokens
    from models.runtime.loading import load_runtime

    opened = open_bundle(bundle)
    indices = read_tokens(tokens, opened.manifest)
    known = {ending: name for ending, name in Image.registered_extensions().items() if name in Image.SAVE}
    if out.suffix.lower() not in known:
        raise InputError(f"{out}: the suffix {out.suffix!r} names no picture format; use .png, .jpg or .webp")
    picture = load_runtime(opened, device=device).decode(indices[None])[0]
    file = BytesIO()
    Image.fromarray(picture).save(file, known[out.suffix.lower()])
    _write(out, file.getvalue())
    typer.echo(out)


def inspect(bundle: Annotated[str, typer.Argument(help="Bundled model, folder or hf://owner/name.")]) -> None:
    """Print what a bundle holds after checking the digests and shapes of its weights."""
    from models.bundle import open_bundle
    from models.inspection import describe

    for key, value in describe(open_bundle(bundle)).items():
        typer.echo(f"{key:<22}{value}")


def import_(
    tokenizer: Annotated[Path, typer.Option(help="Weights of the tokenizer: .bin, .ckpt or .safetensors.")],
    out: Annotated[Path, typer.Option(help="New folder for the bundle.")],
    generator: Annotated[Path | None, typer.Option(help="Weights of the generator.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="A published model, e.g. maskbit_generator_14bit.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Published YAML file, instead of a preset.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="JSON file of class names; ImageNet's by default.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights.")] = "not stated",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16, as stored.")] = "fp32",
) -> None:
    """Make a bundle of published weights."""
    from models.bundle_writer import DTYPES
    from models.errors import InputError
    from models.importer import import_model, read_published
    from models.presets import find_preset

    if precision not in DTYPES:
        raise InputError(f"--precision is {precision!r}; allowed are {', '.join(DTYPES)}")
    if preset is not None and config is None:
        model = find_preset(preset).model
    elif config is not None and preset is None:
        model = read_published(config)
    else:
        raise InputError("give either --preset or --config, which describes the networks")
    bundle = import_model(
        model, out, tokenizer, generator, classes=classes, licence=licence, precision=precision
    )
    parts = "a tokenizer alone" if bundle.manifest.generator is None else "tokenizer and generator"
    typer.echo(f"{bundle.ref} in {out}: {parts}")


def _make_folder(path: Path) -> None:
    from models.errors import InputError

    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InputError(f"cannot write to {path}: {exc.strerror}") from exc


def _write(path: Path, data: bytes) -> None:
    from models.errors import InputError

    _make_folder(path.parent)
    try:
        path.write_bytes(data)
    except OSError as exc:
        raise InputError(f"cannot write {path}: {exc.strerror}") from exc
