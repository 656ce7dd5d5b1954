"""Stage I: train a tokenizer to give pictures back through bits (`maskbit train tokenizer`)."""

import torch

from models.runtime.torch_runtime import choose_device
from models.tokenizer import ConvTokenizer
from training.checkpoints import resume_step, save_checkpoint
from training.config import TokenizerRecipe
from training.data import evaluation_batches, training_loader
from training.ema import Ema
from training.losses import entropy_annealing, tokenizer_loss
from training.metrics import psnr
from training.run import RunLog, autocast, make_optimizer, optimizer_step, seed_step


def train_tokenizer(recipe: TokenizerRecipe, *, resume: bool = False) -> ConvTokenizer:
    """Run `recipe` to its last step and return the averaged network, in eval mode."""
    loop = recipe.training
    device = choose_device(loop.device)
    torch.manual_seed(loop.seed)
    network = ConvTokenizer(recipe.model).to(device)
    ema = Ema(network, loop.ema_decay)
    optimizer = make_optimizer(network, recipe.optimizer)
    start = resume_step(recipe, network, ema, optimizer, resume=resume)
    batches = training_loader(recipe.dataset, loop.per_gpu_batch_size, loop.seed, start)

    with RunLog(recipe, start) as log:
        for step in range(start, loop.max_train_steps):
            seed_step(loop.seed, step)
            images = next(batches).images.to(device)
            network.train()
            with autocast(device, loop.mixed_precision):
                reconstruction, quantized = network(images)
            assert quantized.losses is not None
            annealing = entropy_annealing(step, recipe)
            loss = tokenizer_loss(images, reconstruction, quantized.losses, annealing, recipe.losses)
            norm = optimizer_step(recipe, network, optimizer, loss.total, step)
            ema.update(network)

            done = step + 1
            log.step(done, {"loss": loss.total.item(), "mse": loss.reconstruction.item(), "grad_norm": norm})
            if done % recipe.experiment.eval_every == 0 or done == loop.max_train_steps:
                log.report(done, evaluate(ema.average, recipe, device))
            if done % recipe.experiment.sample_every == 0:
                log.pictures(done, "reconstructions", comparison(ema.average, recipe, device), columns=8)
            if done % recipe.experiment.save_every == 0 or done == loop.max_train_steps:
                save_checkpoint(recipe, done, network, ema, optimizer)
    return ema.average


@torch.inference_mode()
def evaluate(network: ConvTokenizer, recipe: TokenizerRecipe, device: torch.device) -> dict[str, float]:
    """Mean PSNR in dB, mean squared error and share of used codes over the evaluation shards."""
    ratios, codes = [], []
    for batch in evaluation_batches(recipe.dataset.eval_shards, recipe.dataset.image_size, 32):
        reconstruction, quantized = network(batch.images.to(device))
        ratios.append(psnr(reconstruction.clamp(0, 1).cpu(), batch.images))
        codes.append(quantized.indices.flatten().cpu())
    used = torch.unique(torch.cat(codes)).numel() / recipe.model.num_codes
    return {"psnr_db": torch.cat(ratios).mean().item(), "codebook_usage": used}


@torch.inference_mode()
def comparison(network: ConvTokenizer, recipe: TokenizerRecipe, device: torch.device) -> torch.Tensor:
    """Eight evaluation pictures and, below them, their reconstructions: (16, 3, H, W)."""
    batch = next(evaluation_batches(recipe.dataset.eval_shards, recipe.dataset.image_size, 8))
    reconstruction, _ = network(batch.images.to(device))
    return torch.cat([batch.images, reconstruction.cpu()])
