"""Weights of published .bin, .ckpt, .pt or .safetensors files for our modules: strictly, running no code."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import CheckpointError

Weights = Mapping[str, Tensor]

# Buffers of published files that follow from the configuration.
DERIVED = ("bits_to_indices", "quantize.bits_to_indices", "quantize.codebook")
NESTS = ("state_dict", "model", "module")
TRAINING_ONLY = "loss."  # keys of the perceptual network and discriminator in checkpoints of Taming-VQGAN
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # data parallel and compiled modules
SHOWN_KEYS = 5  # keys of each kind that an error message lists


# Older Lightning checkpoints use this class as a mere key beside their weights; an empty one stands for it.
LIGHTNING_CALLBACK = type(
    "ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"}
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a weights file by key, float ones as float32; nested files are unwrapped.

    Raises CheckpointError for a file that is missing, damaged or holds anything but tensors.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path}: no such file") from exc
    except pickle.UnpicklingError as exc:
        # PyTorch's own message advises to switch the protection off.
        raise CheckpointError(
            f"{path}: it is damaged or holds Python objects beside tensors, which are not loaded, "
            "since they could run code"
        ) from exc
    except Exception as exc:
        # A damaged file makes the readers raise nearly anything: IndexError, struct.error, AssertionError
        reason = " ".join([type(exc).__name__, *str(exc).strip().splitlines()[:1]])
        raise CheckpointError(f"{path}: not a readable weights file ({reason})") from exc
    return {
        key: value.float() if value.is_floating_point() else value
        for key, value in _flatten(content, path).items()
    }


def _unpickled(path: Path) -> object:
    with torch.serialization.safe_globals([LIGHTNING_CALLBACK]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _flatten(content: object, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping) and (nest := next(_nests(content), None)):
        content = content[nest]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: expected a mapping of names to tensors, got {type(content).__name__}")
    strangers = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(f"{path}: {', '.join(strangers[:SHOWN_KEYS])} are not tensors")
    return {str(key): value for key, value in content.items()}


def _nests(content: Mapping[str, object]) -> Iterator[str]:
    return (nest for nest in NESTS if isinstance(content.get(nest), Mapping))


def renamed(weights: Weights) -> dict[str, Tensor]:
    """Keys as our modules name them: without prefixes of wrappers; `token_emb` means `input_proj`."""
    plain = {WRAPPERS.sub("", key): value for key, value in weights.items()}
    return {re.sub(r"^token_emb\.", "input_proj.", key): value for key, value in plain.items()}


def fitted(module: nn.Module, weights: Weights, source: object) -> dict[str, Tensor]:
    """`weights` under the keys of `module`, without what published files hold besides.

    CheckpointError names every missing, unexpected or mis-shaped key; `source` names the weights in messages.
    `module` may be on the meta device.
    """
    own = module.state_dict()
    given = {key: value for key, value in renamed(weights).items() if key in own or not _left_out(key)}
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
    return given


def load_into(module: nn.Module, weights: Weights, source: object) -> None:
    """Fill `module` with `weights`, which must fit it exactly (see `fitted`)."""
    module.load_state_dict(fitted(module, weights, source))


def _left_out(key: str) -> bool:
    return key in DERIVED or key.startswith(TRAINING_ONLY)


def _listed(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return f"{what} {', '.join(keys[:SHOWN_KEYS])}{more}"
