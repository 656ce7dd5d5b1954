"""Stage II: train the masked transformer on the tokens of a frozen tokenizer (`maskbit train generator`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from models.bits import join_groups
from models.bundle import GENERATOR_WEIGHTS
from models.generator import Generator
from models.networks import build_generator
from models.sampler import sample
from models.tokenizer import Tokenizer
from training.activation_checkpointing import recompute_activations
from training.batches import evaluation_pictures, next_batch, picture_batches, repeated
from training.cache.batches import TokenBatch, cached_batches
from training.checkpoints import RunState, restore, save_checkpoint
from training.data.batch import Batch, check_labels
from training.ema import Ema
from training.frozen_tokenizer import groups_of, load_frozen_tokenizer
from training.initial_weights import load_initial_weights
from training.losses.masking import Masking, draw_masking
from training.losses.token_loss import TokenLoss, token_loss
from training.optimization import learning_rate, make_optimizer, pictures_per_step, update
from training.processes import processes
from training.randomness import mask_noise, seed_networks
from training.recipe import GeneratorRecipe
from training.run_folder import claim_folder
from training.run_log import RunLog
from training.sharding import bare
from training.throughput import count_flops

SAMPLE_COLUMNS = 8
EVALUATION_BATCH = 32


def train_generator(recipe: GeneratorRecipe, *, resume: bool = False) -> Generator:
    """Run `recipe` to its last step and return the averaged network, in eval mode."""
    with processes(recipe.training) as accelerator:
        checkpoint = claim_folder(recipe, accelerator, resume=resume)
        tokenizer = load_frozen_tokenizer(recipe, accelerator.device)
        state = start_state(recipe, accelerator)
        if checkpoint is not None:
            restore(recipe, state, checkpoint, accelerator)
        run_steps(recipe, accelerator, state, tokenizer)
        average = state.ema.average
    assert isinstance(average, Generator)
    return average


def start_state(recipe: GeneratorRecipe, accelerator: Accelerator) -> RunState:
    """Network, its average and its optimizer before the first step."""
    loop = recipe.training
    torch.manual_seed(loop.seed)
    network = build_generator(recipe.model)
    load_initial_weights(network, recipe.model, recipe.experiment.init_checkpoint, GENERATOR_WEIGHTS)
    network.to(accelerator.device)
    ema = Ema(network, loop.ema_decay if loop.use_ema else 0.0)
    if loop.activation_checkpointing:
        recompute_activations(part for layer in network.transformer.layers for part in layer.children())
    optimizer = make_optimizer(network.parameters(), recipe.optimizer, accelerator.device)
    compiled = torch.compile(network) if loop.compile else network
    prepared, optimizer = accelerator.prepare(compiled, optimizer)
    return RunState({"generator": prepared}, {"generator": optimizer}, ema)


def run_steps(
    recipe: GeneratorRecipe, accelerator: Accelerator, state: RunState, tokenizer: Tokenizer
) -> None:
    """All steps that are left of the run, with its reports and checkpoints."""
    loop, experiment = recipe.training, recipe.experiment
    network, optimizer = state.networks["generator"], state.optimizers["generator"]
    pictures = pictures_per_step(recipe, accelerator)
    flops = flops_of_step(recipe, accelerator, state)
    with RunLog(recipe, accelerator, state, pictures) as log:
        log.throughput.flops = flops
        batches = log.throughput.waiting(training_batches(recipe, accelerator, state, tokenizer))
        for step in range(state.step, loop.max_train_steps):
            loss = backward_passes(recipe, accelerator, state, tokenizer, batches)
            state.step = done = step + 1
            last = done == loop.max_train_steps
            if done % experiment.log_grad_norm_every == 0:
                log.gradient_norms(bare(network))
            rate = learning_rate(recipe, step, pictures)
            norm = update(accelerator, network, optimizer, rate, loop.max_grad_norm)
            state.ema.update(bare(network))
            log.step(
                {
                    "loss": loss.total,
                    "masked_loss": loss.masked,
                    "masked_accuracy": loss.masked_accuracy,
                    "grad_norm": norm,
                },
            )
            with log.aside():
                if done % experiment.save_every == 0 or last:
                    log.check_finite()
                    save_checkpoint(recipe, state, accelerator)
                if accelerator.is_main_process:
                    if done % experiment.eval_every == 0 or last:
                        log.report(evaluate(state.ema.average, tokenizer, recipe, accelerator))
                    if done % experiment.generate_every == 0 or last:
                        samples = draw_classes(state.ema.average, tokenizer, recipe, accelerator.device)
                        log.pictures("samples", samples, SAMPLE_COLUMNS)


def training_batches(
    recipe: GeneratorRecipe, accelerator: Accelerator, state: RunState, tokenizer: Tokenizer
) -> Iterator[Batch | TokenBatch]:
    """This process's batches from `state.step` on: of tokens where there is a cache, else of pictures."""
    loop, cache = recipe.training, recipe.dataset.token_cache
    if cache is None:
        return picture_batches(recipe, accelerator, state)
    batches = cached_batches(
        cache,
        recipe.dataset,
        recipe.model,
        tokenizer,
        loop.per_gpu_batch_size,
        loop.seed,
        next_batch(loop, state),
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    return repeated(batches, loop, state)


def backward_passes(
    recipe: GeneratorRecipe,
    accelerator: Accelerator,
    state: RunState,
    tokenizer: Tokenizer,
    batches: Iterator[Batch | TokenBatch],
) -> TokenLoss:
    """Sum the gradients of one optimizer step over its batches; the losses are means over this process's.

    Masks are drawn for all pictures of the step, in all processes alike, of which each takes its own: the
    loss does not depend on how many processes share the pictures.
    """
    loop, network = recipe.training, state.networks["generator"]
    network.train()
    size, count = loop.per_gpu_batch_size, loop.gradient_accumulation_steps
    rank, world = accelerator.process_index, accelerator.num_processes
    shape = (size * count * world, recipe.model.num_tokens, recipe.model.codebook_splits)
    masking = draw_masking(shape, recipe.losses, count * world, mask_noise(loop.seed, state.step))
    losses = []
    for number in range(count):
        batch = next(batches)  # a loader that is only just started draws from torch's generator
        seed_networks(loop.seed, state.step * count + number, rank)
        groups, labels = inputs_of(batch, tokenizer, recipe, accelerator.device)
        if isinstance(batch, Batch):
            state.take(batch)
        own = masking.rows((number * world + rank) * size, size, accelerator.device)
        with nullcontext() if number == count - 1 else accelerator.no_sync(network):
            loss = guess(network, groups, labels, own, recipe, accelerator)
            accelerator.backward(loss.total / count)
        losses.append(loss)
    return mean_loss(losses)


def inputs_of(
    batch: Batch | TokenBatch, tokenizer: Tokenizer, recipe: GeneratorRecipe, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Groups i64 (B, N, m) and labels i64 (B,) of a batch, on `device`."""
    check_labels(batch.labels, recipe.model.nclass)
    if isinstance(batch, Batch):
        groups = groups_of(tokenizer, batch.images.to(device, non_blocking=True), recipe.model)
    else:
        groups = batch.groups.to(device, non_blocking=True)
    return groups, batch.labels.to(device, non_blocking=True)


def guess(
    network: nn.Module,
    groups: Tensor,
    labels: Tensor,
    masking: Masking,
    recipe: GeneratorRecipe,
    accelerator: Accelerator,
) -> TokenLoss:
    """Loss of one batch, of which the network sees what `masking` leaves."""
    config, losses = recipe.model, recipe.losses
    seen = torch.where(masking.groups, config.group_codes, groups)
    known = torch.where(masking.classes, config.nclass, labels)
    with accelerator.autocast():
        logits = network(seen, known)
    return token_loss(
        logits.float(), groups, masking.groups, masking.weights, losses.label_smoothing, losses.sum_splits
    )


def mean_loss(losses: list[TokenLoss]) -> TokenLoss:
    """Mean of the losses of the equally large batches of one step."""
    names = [field.name for field in fields(TokenLoss)]
    return TokenLoss(*(torch.stack([getattr(loss, name) for loss in losses]).mean() for name in names))


def flops_of_step(recipe: GeneratorRecipe, accelerator: Accelerator, state: RunState) -> int:
    """Floating-point operations of the generator in one optimizer step, forward and backward."""
    config = recipe.model
    network = bare(state.networks["generator"])
    tokens = torch.zeros(
        (1, config.num_tokens, config.codebook_splits), dtype=torch.int64, device=accelerator.device
    )
    label = tokens.new_zeros(1)
    flops = count_flops(lambda: network(tokens, label).sum().backward())
    network.zero_grad(set_to_none=True)
    return flops * pictures_per_step(recipe, accelerator)


@torch.inference_mode()
def evaluate(
    network: Generator, tokenizer: Tokenizer, recipe: GeneratorRecipe, accelerator: Accelerator
) -> dict[str, float]:
    """Mean loss and accuracy on masked groups of `evaluation_pictures`, with the same masks at every call."""
    noise = mask_noise(recipe.training.seed, 0)
    sums, pictures = torch.zeros(2, device=accelerator.device), 0
    for batch in evaluation_pictures(recipe, EVALUATION_BATCH):
        groups, labels = inputs_of(batch, tokenizer, recipe, accelerator.device)
        rows, tokens, splits = groups.shape
        masking = draw_masking((rows, tokens, splits), recipe.losses, 1, noise)
        own = masking.rows(0, rows, accelerator.device)
        loss = guess(network, groups, labels, own, recipe, accelerator)
        sums += rows * torch.stack([loss.masked, loss.masked_accuracy])
        pictures += rows
    masked_loss, masked_accuracy = (sums / pictures).tolist()
    return {"masked_loss": masked_loss, "masked_accuracy": masked_accuracy}


@torch.inference_mode()
def draw_classes(
    network: Generator, tokenizer: Tokenizer, recipe: GeneratorRecipe, device: torch.device
) -> Tensor:
    """One drawn picture of each of the first classes: f32 (classes, 3, H, W)."""
    config = recipe.model
    labels = torch.arange(min(config.nclass, recipe.training.num_generated_images), device=device)
    groups = sample(network, config, recipe.sampling, labels, seeds=labels.tolist())
    indices = torch.from_numpy(join_groups(groups.cpu().numpy(), config.bits)).to(device)
    return tokenizer.decode_indices(indices.view(-1, config.grid, config.grid))
