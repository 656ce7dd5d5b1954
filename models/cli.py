"""Commands that use a bundle directly, without a server."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Annotated

import typer

BundleOption = Annotated[str, typer.Option(help="Bundled model, folder or hf://owner/name.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
RuntimeOption = Annotated[str, typer.Option(help="auto, torch, onnx, tensorrt, triton or noop.")]


def tokenize(
    picture: Annotated[Path, typer.Argument(help="Picture file; resized and centre-cropped.")],
    out: Annotated[Path | None, typer.Option(help="JSON file; standard output by default.")] = None,
    bundle: BundleOption = "fruit",
    runtime: RuntimeOption = "auto",
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
    indices = load_runtime(opened, runtime, device=device).encode(pixels[None])[0]
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
    runtime: RuntimeOption = "auto",
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
    picture = load_runtime(opened, runtime, device=device).decode(indices[None])[0]
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


def _write(path: Path, data: bytes) -> None:
    from models.local_drawing import make_folder
    from models.whole_file import write_whole

    make_folder(path.parent)
    write_whole(path, data)
