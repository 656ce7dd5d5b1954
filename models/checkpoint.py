"""Weights from published .bin, .ckpt, .pt or .safetensors files into our modules: strictly, without running code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import CheckpointError

Weights = Mapping[str, Tensor]

# Buffers of published files that follow from the configuration.
DERIVED = ("bits_to_indices", "quantize.bits_to_indices", "quantize.codebook")
NESTS = ("state_dict", "model", "module")
SHOWN_KEYS = 5  # keys of each kind that an error message lists


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a weights file by key, float ones as float32; nested files are unwrapped.

    Raises CheckpointError for a file that is missing, damaged or holds anything but tensors.
    """
    try:
        content = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        )
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path}: no such file") from exc
    except (
        OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile
    ) as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise CheckpointError(f"{path}: not a readable weights file ({reason})") from exc
    return {
        key: value.float() if value.is_floating_point() else value for key, value in _flatten(content, path).items()
    }


def _flatten(content: object, path: Path) -> dict[str, Tensor]:
    for nest in NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: expected a mapping of names to tensors, got {type(content).__name__}")
    strangers = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(f"{path}: {', '.join(strangers[:SHOWN_KEYS])} are not tensors")
    return {str(key): value for key, value in content.items()}


def renamed(weights: Weights) -> dict[str, Tensor]:
    """Keys as our modules name them: without data-parallel or compile prefixes; `token_emb` means `input_proj`."""
    result = {}
    for key, value in weights.items():
        for prefix in ("module.", "_orig_mod."):
            key = key.removeprefix(prefix)
        if key.startswith("token_emb."):
            key = "input_proj." + key.removeprefix("token_emb.")
        result[key] = value
    return result


def load_into(module: nn.Module, weights: Weights, source: object) -> None:
    """Fill `module` with `weights`; CheckpointError naming every missing, unexpected or mis-shaped key.

    `source` names the weights in messages.
    """
    own = module.state_dict()
    given = {key: value for key, value in renamed(weights).items() if key in own or key not in DERIVED}
    problems = [
        _listed("missing", [key for key in own if key not in given]),
        _listed("unexpected", [key for key in given if key not in own]),
        _listed(
            "mis-shaped",
            [
                f"{key} {tuple(given[key].shape)} instead of {tuple(value.shape)}"
                for key, value in own.items()
                if key in given and given[key].shape != value.shape
            ],
        ),
        _listed("not finite", [key for key, value in given.items() if not torch.isfinite(value).all()]),
    ]
    if any(problems):
        raise CheckpointError(f"{source} does not fit the network: {'; '.join(filter(None, problems))}")
    module.load_state_dict(given)


def _listed(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return f"{what} {', '.join(keys[:SHOWN_KEYS])}{more}"
