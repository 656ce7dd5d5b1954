"""`maskbit export …`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

export_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

BundleArgument = Annotated[str, typer.Argument(help="Bundled model, folder or hf://owner/name.")]


@export_app.callback()
def export() -> None:
    """Compile a bundle for runtimes other than PyTorch."""


@export_app.command()
def onnx(
    bundle: BundleArgument,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="Of the generator: fp32, fp16 or bf16; several by commas or repetition."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Export into a copy of the bundle: a new folder, or such a copy.")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Keep nothing of an older export.")] = False,
) -> None:
    """Write ONNX graphs into a bundle."""
    from export.onnx_export import export_onnx
    from models.bundle import open_bundle
    from models.bundle_writer import copy_bundle

    opened = open_bundle(bundle)
    if out is not None:
        opened = copy_bundle(opened, out)
    precisions = [part.strip() for given in precision or ["fp32"] for part in given.split(",")]
    typer.echo(export_onnx(opened, precisions, typer.echo, rebuild=rebuild))


@export_app.command()
def tensorrt(
    bundle: BundleArgument,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="Of the generator: fp16, bf16 or fp32; several by commas or repetition."),
    ] = None,
    workspace_gib: Annotated[
        float | None, typer.Option(min=0.01, help="Scratch memory of a layer; all of the GPU by default.")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build plans that fit again, too.")] = False,
    device: Annotated[str, typer.Option(help="auto, cuda or cuda:<number>.")] = "auto",
) -> None:
    """Build TensorRT plans into a bundle, for this GPU and the installed TensorRT."""
    from export.tensorrt_plans import export_tensorrt
    from models.bundle import open_bundle

    precisions = [part.strip() for given in precision or ["fp16"] for part in given.split(",")]
    export_tensorrt(
        open_bundle(bundle),
        precisions,
        device=device,
        workspace_gib=workspace_gib,
        rebuild=rebuild,
        say=typer.echo,
    )


@export_app.command()
def verify(
    bundle: BundleArgument,
    runtimes: Annotated[
        str | None,
        typer.Option(
            help="What to compare, such as onnx:fp16,torch:bf16; by default all that a service would take."
        ),
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures to draw, encode and decode.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps of each.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Compare runtimes with torch fp32 on the same inputs; the report goes into the bundle.

    Ends with code 1 when one fails, or one that was asked for by name cannot be had.
    """
    from export.trial import Trial
    from export.verify import Verifier, parse_candidates, usual_candidates
    from models.bundle import open_bundle
    from models.errors import BundleError
    from models.verification import FAILED, PASSED, read_verification

    named = None if runtimes is None else parse_candidates(runtimes)
    opened = open_bundle(bundle)
    if not os.access(opened.path, os.W_OK):
        # To say so after the measuring would be late.
        raise BundleError(
            f"{opened.path} cannot be written to, and the report goes there; "
            f"maskbit export onnx {bundle} --out FOLDER makes a copy"
        )
    trial = Trial(opened.manifest, pictures, steps)
    verifier = Verifier(opened, trial, device, typer.echo)
    report = verifier.verify(named or usual_candidates(opened, device))
    former = None
    with suppress(BundleError):
        former = read_verification(opened.path)
    typer.echo(f"report in {report.joined(former).write(opened.path)}")
    verdicts = [one.verdict for one in report.runtimes]
    if FAILED in verdicts or PASSED not in verdicts or (named and set(verdicts) != {PASSED}):
        raise typer.Exit(1)


@export_app.command()
def triton(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option(help="Model repository: a new folder, or one to add to.")],
    backend: Annotated[str, typer.Option(help="onnxruntime, tensorrt or python.")] = "onnxruntime",
    precision: Annotated[
        str, typer.Option(help="Of the generator; auto, fp32, fp16 or bf16, as exported.")
    ] = "auto",
    device: Annotated[
        str | None, typer.Option(help="Where Triton computes: cpu or gpu; by default cpu, gpu for tensorrt.")
    ] = None,
    instances: Annotated[int, typer.Option(min=1, help="Of each graph, on each device.")] = 1,
    strict: Annotated[bool, typer.Option(help="One batch size for all, for bit-equal tokens.")] = False,
    plans: Annotated[
        str | None, typer.Option(help="Which TensorRT plans, such as nvidia-h200.trt10.13.0.35.")
    ] = None,
) -> None:
    """Write a model repository for Triton Inference Server."""
    from export.triton_repository import write_repository
    from export.triton_sources import Choice
    from models.bundle import open_bundle

    opened = open_bundle(bundle)
    place = device or ("gpu" if backend == "tensorrt" else "cpu")
    choice = Choice(backend, precision, place, instances, strict=strict, plans=plans)
    version = write_repository(opened, out, choice)
    typer.echo(f"version {version} of {opened.ref} in {out}")
