"""What a bundle holds, in words, after its weights were checked."""

from __future__ import annotations

import torch

from models.bundle import GENERATOR_WEIGHTS, TOKENIZER_WEIGHTS, Bundle
from models.checkpoint import fitted, read_weights
from models.errors import BundleError
from models.layers import count_parameters
from models.networks import build_generator, build_tokenizer
from models.sampling_config import SamplingConfig
from models.verification import verification_of


def describe(bundle: Bundle) -> dict[str, str]:
    """Lines for the user by label; BundleError or CheckpointError when the bundle is not sound."""
    manifest = bundle.manifest
    # On the meta device a network has names and shapes but takes neither memory nor time.
    with torch.device("meta"):
        tokenizer = build_tokenizer(manifest.tokenizer)
        generator = None if manifest.generator is None else build_generator(manifest.generator)
    path = bundle.weights_file(TOKENIZER_WEIGHTS)
    fitted(tokenizer, read_weights(path), path)
    config = manifest.tokenizer
    lines = {
        "bundle": bundle.ref,
        "folder": str(bundle.path),
        "licence": manifest.licence,
        "pictures": f"{manifest.image_size} x {manifest.image_size} pixels",
        "tokens": f"{manifest.grid} x {manifest.grid} of {config.bits} bits",
        "tokenizer": (
            f"{config.model_class}, {config.quantizer_type}, "
            f"{_millions(count_parameters(tokenizer))} parameters"
        ),
    }
    if manifest.generator is None or generator is None:
        lines["generator"] = "none"
    else:
        path = bundle.weights_file(GENERATOR_WEIGHTS)
        fitted(generator, read_weights(path), path)
        shape = manifest.generator
        lines["generator"] = (
            f"{shape.model_cls}, {shape.depth} layers of width {shape.hidden_dim}, "
            f"{shape.codebook_splits} groups, {_millions(count_parameters(generator))} parameters"
        )
        lines["classes"] = f"{len(manifest.class_names)}: {', '.join(manifest.class_names[:16])}"
        lines["sampling"] = _sampling(manifest.sampling)
    lines.update({f"from {key}": str(value) for key, value in manifest.provenance.items()})
    lines["files"] = f"{', '.join(manifest.files)}: digests agree"
    lines["verified"] = _verified(bundle)
    return lines


def _verified(bundle: Bundle) -> str:
    """What `maskbit export verify` found; a report that is of no use leaves the bundle sound."""
    try:
        report = verification_of(bundle)
    except BundleError as exc:
        return f"no: {exc}"
    if report is None:
        return "no"
    found = ", ".join(f"{one.name} {one.verdict}" for one in report.runtimes)
    return f"{report.date[:10]} on {report.hardware}: {found}"


def _sampling(config: SamplingConfig) -> str:
    parts = [
        f"{config.steps} steps",
        f"guidance {config.guidance_scale:g} ({config.guidance_annealing})",
        f"noise {config.noise_temperature:g}",
        config.mask_schedule,
    ]
    usual = SamplingConfig()
    if config.guidance_cutoff != usual.guidance_cutoff:
        parts.append(f"guidance_cutoff {config.guidance_cutoff:g}")
    if config.guidance_interval != usual.guidance_interval:
        start, end = config.guidance_interval
        parts.append(f"guidance_interval {start:g} to {end:g}")
    if config.group_order != usual.group_order:
        parts.append(f"group_order {config.group_order}")
    return ", ".join(parts)


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"
