"""Stage I: train a tokenizer to give pictures back through bits (`maskbit train tokenizer`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from models.tokenizer import ConvTokenizer
from training.batches import evaluation_pictures, picture_batches
from training.checkpoints import RunState, restore, save_checkpoint
from training.data.batch import Batch
from training.evaluation.reconstruction_metrics import psnr
from training.losses.perceptual import load_perceptual
from training.losses.tokenizer_loss import entropy_annealing, tokenizer_loss
from training.lr_schedule import cosine_with_minimum
from training.optimization import learning_rate, pictures_per_step, update
from training.processes import processes
from training.recipe import TokenizerRecipe
from training.run_folder import claim_folder
from training.run_log import RunLog
from training.sharding import bare
from training.tokenizer_flops import discriminator_flops, tokenizer_flops
from training.tokenizer_state import (
    ADVERSARY,
    TOKENIZER,
    adversary_of,
    check_compatible,
    set_modes,
    start_state,
    tokenizer_of,
)

EVALUATION_BATCH = 32


def train_tokenizer(recipe: TokenizerRecipe, *, resume: bool = False) -> ConvTokenizer:
    """Run `recipe` to its last step and return the averaged network, in eval mode."""
    with processes(recipe.training) as accelerator:
        check_compatible(recipe, accelerator)
        perceptual = load_perceptual(recipe.losses)
        checkpoint = claim_folder(recipe, accelerator, resume=resume)
        state = start_state(recipe, accelerator)
        if checkpoint is not None:
            restore(recipe, state, checkpoint, accelerator)
        run_steps(recipe, accelerator, state, perceptual and perceptual.to(accelerator.device))
        average = state.ema.average
    assert isinstance(average, ConvTokenizer)
    return average


def run_steps(
    recipe: TokenizerRecipe, accelerator: Accelerator, state: RunState, perceptual: nn.Module | None
) -> None:
    """All steps that are left of the run, with its reports and checkpoints."""
    loop, experiment = recipe.training, recipe.experiment
    pictures = pictures_per_step(recipe, accelerator)
    flops = flops_per_picture(recipe, state, perceptual)
    with RunLog(recipe, accelerator, state, pictures) as log:
        batches = log.throughput.waiting(picture_batches(recipe, accelerator, state))
        for step in range(state.step, loop.max_train_steps):
            rates = {TOKENIZER: learning_rate(recipe, step, pictures)}
            if adversary_of(state) is not None:
                rates[ADVERSARY] = discriminator_rate(recipe, step, pictures)
            log.throughput.flops = pictures * sum(flops[name] for name in rates)
            scalars = backward_passes(recipe, accelerator, state, perceptual, batches)
            state.step = done = step + 1
            last = done == loop.max_train_steps
            for name, rate in rates.items():
                network = state.networks[name]
                if done % experiment.log_grad_norm_every == 0:
                    log.gradient_norms(bare(network))
                norm = update(accelerator, network, state.optimizers[name], rate, loop.max_grad_norm)
                scalars[f"{name}_grad_norm"] = norm
            state.ema.update(tokenizer_of(state))
            log.step(scalars)
            with log.aside():
                if done % experiment.save_every == 0 or last:
                    log.check_finite()
                    save_checkpoint(recipe, state, accelerator)
                if accelerator.is_main_process:
                    if done % experiment.eval_every == 0 or last:
                        log.report(evaluate(state.ema.average, recipe, accelerator.device))
                    if done % experiment.generate_every == 0 or last:
                        shown = comparison(state.ema.average, recipe, accelerator.device)
                        log.pictures("reconstructions", shown, len(shown) // 2)


def discriminator_rate(recipe: TokenizerRecipe, step: int, pictures: int) -> float:
    """Learning rate of the discriminator at 0-based `step`, each of which sees `pictures`.

    Its schedule begins with its training and ends with the run.
    """
    config, start = recipe.optimizer, recipe.losses.discriminator_start
    base = config.discriminator_learning_rate or config.learning_rate
    return cosine_with_minimum(
        step - start,
        base * (pictures if config.scale_lr else 1),
        recipe.lr_scheduler.warmup_steps,
        recipe.training.max_train_steps - start,
    )


def backward_passes(
    recipe: TokenizerRecipe,
    accelerator: Accelerator,
    state: RunState,
    perceptual: nn.Module | None,
    batches: Iterator[Batch],
) -> dict[str, Tensor]:
    """Sum the gradients of one optimizer step over its batches; returns means for the log."""
    set_modes(state, decoder_only=recipe.training.decoder_only)
    count = recipe.training.gradient_accumulation_steps
    found = []
    for number in range(count):
        batch = next(batches)
        state.take(batch)
        images = batch.images.to(accelerator.device, non_blocking=True)
        with ExitStack() as unsynced:
            if number < count - 1:
                for network in state.networks.values():
                    unsynced.enter_context(accelerator.no_sync(network))
            found.append(backward_pass(recipe, accelerator, state, perceptual, images))
    return {key: torch.stack([scalars[key] for scalars in found]).mean() for key in found[0]}


def backward_pass(
    recipe: TokenizerRecipe,
    accelerator: Accelerator,
    state: RunState,
    perceptual: nn.Module | None,
    images: Tensor,
) -> dict[str, Tensor]:
    """Add the gradients of `images` to the tokenizer's and, if it takes part, to the discriminator's."""
    adversary, count = adversary_of(state), recipe.training.gradient_accumulation_steps
    with accelerator.autocast():
        reconstruction, quantized = state.networks[TOKENIZER](images)
        loss = tokenizer_loss(
            images,
            reconstruction,
            quantized.losses,
            recipe.losses,
            annealing=entropy_annealing(state.step, recipe),
            perceptual=perceptual,
            adversary=adversary,
            last_layer=tokenizer_of(state).decoder.conv_out.weight,
        )
    accelerator.backward(loss.total / count)
    scalars = loss.scalars()
    if adversary is not None:
        own = state.networks[ADVERSARY](images, reconstruction)
        accelerator.backward(own.total / count)
        scalars |= own.scalars()
    return scalars


def flops_per_picture(
    recipe: TokenizerRecipe, state: RunState, perceptual: nn.Module | None
) -> dict[str, int]:
    """Floating-point operations that training each network costs, by its name."""
    resolution = recipe.dataset.resolution
    flops = {TOKENIZER: tokenizer_flops(tokenizer_of(state), perceptual, resolution)}
    if ADVERSARY in state.networks:
        discriminator = bare(state.networks[ADVERSARY]).get_submodule("discriminator")
        flops[ADVERSARY] = discriminator_flops(discriminator, recipe.model.num_channels, resolution)
    return flops


@torch.inference_mode()
def evaluate(network: ConvTokenizer, recipe: TokenizerRecipe, device: torch.device) -> dict[str, float]:
    """Mean PSNR in dB and share of used codes over the pictures of `evaluation_pictures`."""
    ratios, codes = [], []
    for batch in evaluation_pictures(recipe, EVALUATION_BATCH):
        images = batch.images.to(device)
        reconstruction, quantized = network(images)
        ratios.append(psnr(reconstruction.clamp(0, 1), images))
        codes.append(quantized.indices.flatten())
    used = torch.unique(torch.cat(codes)).numel() / recipe.model.num_codes
    return {"psnr_db": torch.cat(ratios).mean().item(), "codebook_usage": used}


@torch.inference_mode()
def comparison(network: ConvTokenizer, recipe: TokenizerRecipe, device: torch.device) -> Tensor:
    """The first n evaluation pictures and then their reconstructions: (2n, 3, H, W)."""
    count = recipe.training.num_generated_images
    images = next(evaluation_pictures(recipe, count, count)).images.to(device)
    reconstruction, _ = network(images)
    return torch.cat([images, reconstruction])
