"""What a bundle holds, in words, after its weights were checked."""

from __future__ import annotations

from models.bundle import GENERATOR_WEIGHTS, TOKENIZER_WEIGHTS, Bundle
from models.checkpoint import load_into, read_weights
from models.generator import LfqBert
from models.layers import count_parameters
from models.tokenizer import ConvTokenizer


def describe(bundle: Bundle) -> dict[str, str]:
    """Lines for the user by label; BundleError or CheckpointError when the bundle is not sound."""
    manifest = bundle.manifest
    tokenizer = ConvTokenizer(manifest.tokenizer)
    path = bundle.weights_file(TOKENIZER_WEIGHTS)
    load_into(tokenizer, read_weights(path), path)
    config = manifest.tokenizer
    lines = {
        "bundle": bundle.ref,
        "folder": str(bundle.path),
        "licence": manifest.licence,
        "pictures": f"{manifest.image_size} x {manifest.image_size} pixels",
        "tokens": f"{manifest.grid} x {manifest.grid} of {config.bits} bits",
        "tokenizer": f"{config.quantizer_type}, {_millions(count_parameters(tokenizer))} parameters",
    }
    if manifest.generator is None:
        lines["generator"] = "none"
    else:
        generator = LfqBert(manifest.generator)
        path = bundle.weights_file(GENERATOR_WEIGHTS)
        load_into(generator, read_weights(path), path)
        shape = manifest.generator
        lines["generator"] = (
            f"{shape.depth} layers of width {shape.hidden_dim}, {shape.codebook_splits} groups, "
            f"{_millions(count_parameters(generator))} parameters"
        )
        lines["classes"] = f"{len(manifest.class_names)}: {', '.join(manifest.class_names[:16])}"
        sampling = manifest.sampling
        lines["sampling"] = (
            f"{sampling.steps} steps, guidance {sampling.guidance_scale:g} ({sampling.guidance_annealing}), "
            f"noise {sampling.noise_temperature:g}, {sampling.mask_schedule}"
        )
    lines.update({f"from {key}": str(value) for key, value in manifest.provenance.items()})
    lines["files"] = f"{', '.join(manifest.files)}: digests agree"
    return lines


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"
