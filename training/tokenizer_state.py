"""What changes in a run of stage I: the tokenizer, its average, its adversary, and their optimizers."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor

from models.bundle import TOKENIZER_WEIGHTS
from models.quantizer import Quantized
from models.runtime.torch_runtime import full_precision
from models.tokenizer import ConvTokenizer
from models.validation import require
from training.activation_checkpointing import recompute_activations
from training.checkpoints import RunState
from training.ema import Ema
from training.initial_weights import load_initial_weights
from training.losses.adversary import Adversary
from training.optimization import make_optimizer
from training.recipe import TokenizerRecipe
from training.sharding import bare

TOKENIZER, ADVERSARY = "tokenizer", "adversary"


def check_compatible(recipe: TokenizerRecipe, accelerator: Accelerator) -> None:
    """Raise ConfigError for settings that exclude one another."""
    require(
        bool(recipe.experiment.init_checkpoint) or not recipe.training.decoder_only,
        "training.decoder_only is set, but experiment.init_checkpoint is missing: the encoder to keep",
    )
    if recipe.discriminator is None:
        return
    require(
        accelerator.distributed_type != DistributedType.FSDP,
        "model.discriminator cannot be trained under FSDP; a tokenizer is small enough for DDP",
    )
    require(
        recipe.losses.discriminator_gradient_penalty == "none" or not recipe.training.compile,
        "training.compile is set, which does not go with losses.discriminator_gradient_penalty "
        "'adopt_weight': a compiled network gives no gradient of its last layer alone",
    )


def start_state(recipe: TokenizerRecipe, accelerator: Accelerator) -> RunState:
    """Everything before the first step; an optimizer bears the name of its network."""
    loop, device = recipe.training, accelerator.device
    torch.manual_seed(loop.seed)
    tokenizer = ConvTokenizer(recipe.model)
    load_initial_weights(tokenizer, recipe.model, recipe.experiment.init_checkpoint, TOKENIZER_WEIGHTS)
    tokenizer.to(device)
    ema = Ema(tokenizer, loop.ema_decay if loop.use_ema else 0.0)
    quantize_precisely(tokenizer)
    if loop.activation_checkpointing:
        recompute_activations([*tokenizer.encoder.down, *tokenizer.decoder.up])
    if loop.decoder_only:
        freeze_tokens(tokenizer)
    networks: dict[str, Any] = {TOKENIZER: torch.compile(tokenizer) if loop.compile else tokenizer}
    if recipe.discriminator is not None:
        networks[ADVERSARY] = Adversary(recipe.discriminator, recipe.losses).to(device)
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name, network in networks.items():
        optimizer = make_optimizer(network.parameters(), recipe.optimizer, device)
        networks[name], optimizers[name] = accelerator.prepare(network, optimizer)
    return RunState(networks, optimizers, ema)


def quantize_precisely(tokenizer: ConvTokenizer) -> None:
    """Keep autocast away from the quantizer: half-precision distances would choose other codes."""
    quantize = tokenizer.quantize.forward

    def precise(latents: Tensor) -> Quantized:
        with torch.autocast(latents.device.type, enabled=False):
            return quantize(latents.float())

    tokenizer.quantize.forward = precise  # type: ignore[method-assign]


def freeze_tokens(tokenizer: ConvTokenizer) -> None:
    """Keep encoder and quantizer as they are, and compute tokens as in use: in full precision."""
    tokenizer.encoder.requires_grad_(False)
    tokenizer.quantize.requires_grad_(False)
    encode = tokenizer.encoder.forward

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def exact(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False), full_precision():
            return encode(images)

    tokenizer.encoder.forward = exact  # type: ignore[method-assign]


def set_modes(state: RunState, *, decoder_only: bool) -> None:
    """Training mode; where it is frozen, the quantizer stays in eval mode and gives no losses."""
    for network in state.networks.values():
        network.train()
    if decoder_only:
        tokenizer_of(state).eval()
        tokenizer_of(state).decoder.train()


def tokenizer_of(state: RunState) -> ConvTokenizer:
    """The bare tokenizer in training."""
    tokenizer = bare(state.networks[TOKENIZER])
    assert isinstance(tokenizer, ConvTokenizer)
    return tokenizer


def adversary_of(state: RunState) -> Adversary | None:
    """The bare adversary, if it takes part in step `state.step`."""
    if ADVERSARY not in state.networks:
        return None
    adversary = bare(state.networks[ADVERSARY])
    assert isinstance(adversary, Adversary)
    return adversary if adversary.active(state.step) else None
