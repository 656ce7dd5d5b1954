"""Commands that use a bundle directly, without a server."""

from __future__ import annotations

import json
import secrets
import time
from io import BytesIO
from pathlib import Path
from typing import Annotated

import typer

BundleOption = Annotated[str, typer.Option(help="Bundled model, folder or hf://owner/name.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def generate(
    class_: Annotated[list[str], typer.Option("--class", help="Class name or number; repeatable.")],
    n: Annotated[int, typer.Option("--n", min=1, max=256, help="Pictures of each class.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="First seed; picture k uses seed + k.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; the bundle's by default.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0, max=30)] = None,
    temperature: Annotated[float | None, typer.Option(min=0.01, max=10)] = None,
    out: Annotated[Path, typer.Option(help="Folder for the PNG files.")] = Path("pictures"),
    bundle: BundleOption = "fruit",
    device: DeviceOption = "auto",
) -> None:
    """Draw pictures of one or more classes into PNG files named after class and seed."""
    from dataclasses import replace

    from PIL import Image
    from rich.console import Console
    from rich.progress import Progress

    from models.bundle import open_bundle
    from models.classes import find_class
    from models.drawing import draw, generator_of
    from models.noise import check_seed
    from models.runtime.loading import load_runtime
    from models.schedule import plan_steps

    opened = open_bundle(bundle)
    manifest = opened.manifest
    config = generator_of(manifest)
    usual = manifest.sampling
    sampling = replace(
        usual,
        steps=usual.steps if steps is None else steps,
        guidance_scale=usual.guidance_scale if guidance_scale is None else guidance_scale,
        temperature=usual.temperature if temperature is None else temperature,
    )
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
    typer.echo(f"drawn in {seconds:.1f} s", err=True)


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
