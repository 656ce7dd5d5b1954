"""Stage II: train the masked transformer on the tokens of a frozen tokenizer (`maskbit train generator`)."""

import torch
from torch import Tensor

from models.bundle import TOKENIZER_WEIGHTS, open_bundle
from models.checkpoint import load_into, read_weights
from models.config import GeneratorConfig, require
from models.generator import LfqBert
from models.runtime.torch_runtime import choose_device
from models.sampler import sample
from models.tokenizer import ConvTokenizer
from training.checkpoints import resume_step, save_checkpoint
from training.config import GeneratorRecipe
from training.data import check_labels, evaluation_batches, training_loader
from training.ema import Ema
from training.losses import TokenLoss, token_loss
from training.masking import drop_classes, random_masks
from training.run import RunLog, autocast, make_optimizer, optimizer_step, seed_step

SAMPLE_COLUMNS = 8
MAX_SAMPLED_CLASSES = 16
EVALUATED_PICTURES = 512


def load_frozen_tokenizer(recipe: GeneratorRecipe, device: torch.device) -> ConvTokenizer:
    """The tokenizer of the bundle `model.tokenizer`, checked against the generator's configuration."""
    bundle = open_bundle(recipe.tokenizer)
    config, tokenizer = recipe.model, bundle.manifest.tokenizer
    require(
        (config.bits, config.input_stride, config.img_size)
        == (tokenizer.bits, tokenizer.stride, recipe.dataset.image_size),
        f"the generator needs {config.bits} bits, stride {config.input_stride} and {config.img_size} pixels; "
        f"the tokenizer has {tokenizer.bits} bits and stride {tokenizer.stride}, "
        f"the data set {recipe.dataset.image_size} pixels",
    )
    network = ConvTokenizer(tokenizer)
    path = bundle.weights_file(TOKENIZER_WEIGHTS)
    load_into(network, read_weights(path), path)
    return network.to(device).eval().requires_grad_(False)


@torch.inference_mode()
def groups_of(tokenizer: ConvTokenizer, images: Tensor, config: GeneratorConfig) -> Tensor:
    """Token groups i64 (B, N, m) of `images` f32 (B, 3, H, W)."""
    indices = tokenizer.encode(images).indices.flatten(1)[..., None]
    shifts = torch.arange(config.codebook_splits, device=images.device) * config.group_bits
    return (indices >> shifts) & (config.group_codes - 1)


def guess(network: LfqBert, groups: Tensor, labels: Tensor, recipe: GeneratorRecipe) -> TokenLoss:
    """Loss of one batch: groups are masked, classes dropped, and all groups predicted."""
    config, losses = recipe.model, recipe.losses
    masks = random_masks(groups.shape, losses.mask_schedule, groups.device)
    seen = torch.where(masks, config.group_codes, groups)
    with autocast(groups.device, recipe.training.mixed_precision):
        logits = network(seen, drop_classes(labels, losses.class_dropout, config.nclass))
    return token_loss(logits.float(), groups, masks, losses.label_smoothing, losses.sum_splits)


def train_generator(recipe: GeneratorRecipe, *, resume: bool = False) -> LfqBert:
    """Run `recipe` to its last step and return the averaged network, in eval mode."""
    loop = recipe.training
    device = choose_device(loop.device)
    tokenizer = load_frozen_tokenizer(recipe, device)
    torch.manual_seed(loop.seed)
    network = LfqBert(recipe.model).to(device)
    ema = Ema(network, loop.ema_decay)
    optimizer = make_optimizer(network, recipe.optimizer)
    start = resume_step(recipe, network, ema, optimizer, resume=resume)
    batches = training_loader(recipe.dataset, loop.per_gpu_batch_size, loop.seed, start)

    with RunLog(recipe, start) as log:
        for step in range(start, loop.max_train_steps):
            seed_step(loop.seed, step)
            batch = next(batches)
            check_labels(batch.labels, recipe.model.nclass)
            network.train()
            groups = groups_of(tokenizer, batch.images.to(device), recipe.model).clone()
            loss = guess(network, groups, batch.labels.to(device), recipe)
            norm = optimizer_step(recipe, network, optimizer, loss.total, step)
            ema.update(network)

            done = step + 1
            log.step(
                done,
                {
                    "loss": loss.total.item(),
                    "masked_loss": loss.masked.item(),
                    "masked_accuracy": loss.masked_accuracy.item(),
                    "grad_norm": norm,
                },
            )
            if done % recipe.experiment.eval_every == 0 or done == loop.max_train_steps:
                log.report(done, evaluate(ema.average, tokenizer, recipe, device))
            if done % recipe.experiment.sample_every == 0 or done == loop.max_train_steps:
                log.pictures(
                    done, "samples", draw_classes(ema.average, tokenizer, recipe, device), SAMPLE_COLUMNS
                )
            if done % recipe.experiment.save_every == 0 or done == loop.max_train_steps:
                save_checkpoint(recipe, done, network, ema, optimizer)
    return ema.average


@torch.inference_mode()
def evaluate(
    network: LfqBert, tokenizer: ConvTokenizer, recipe: GeneratorRecipe, device: torch.device
) -> dict[str, float]:
    """Mean loss and accuracy on masked groups of evaluation pictures, with the same masks at every call."""
    torch.manual_seed(recipe.training.seed)
    losses = []
    shards, size = recipe.dataset.eval_shards, recipe.dataset.image_size
    for batch in evaluation_batches(shards, size, 32, EVALUATED_PICTURES):
        groups = groups_of(tokenizer, batch.images.to(device), recipe.model)
        losses.append(guess(network, groups, batch.labels.to(device), recipe))
    return {
        "masked_loss": float(torch.stack([loss.masked for loss in losses]).mean()),
        "masked_accuracy": float(torch.stack([loss.masked_accuracy for loss in losses]).mean()),
    }


@torch.inference_mode()
def draw_classes(
    network: LfqBert, tokenizer: ConvTokenizer, recipe: GeneratorRecipe, device: torch.device
) -> Tensor:
    """One drawn picture of each of the first classes: f32 (classes, 3, H, W)."""
    config = recipe.model
    labels = torch.arange(min(config.nclass, MAX_SAMPLED_CLASSES), device=device)
    groups = sample(network, config, recipe.sampling, labels, seeds=labels.tolist())
    shifts = torch.arange(config.codebook_splits, device=device) * config.group_bits
    indices = (groups << shifts).sum(-1).view(-1, config.grid, config.grid)
    return tokenizer.decode_indices(indices)
