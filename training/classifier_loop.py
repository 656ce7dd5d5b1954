"""Train a classifier to serve as perceptual and evaluation network (`maskbit train perceptual`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from training.activation_checkpointing import recompute_activations
from training.batches import evaluation_pictures, picture_batches
from training.checkpoints import RunState, restore, save_checkpoint
from training.classifier import Classifier
from training.data.batch import Batch, check_labels
from training.ema import Ema
from training.optimization import learning_rate, make_optimizer, pictures_per_step, update
from training.processes import processes
from training.recipe import ClassifierRecipe
from training.run_folder import claim_folder
from training.run_log import RunLog
from training.sharding import bare

LABEL_SMOOTHING = 0.1
EVALUATION_BATCH = 64


def train_classifier(recipe: ClassifierRecipe, *, resume: bool = False) -> Classifier:
    """Run `recipe` to its last step and return the averaged network, in eval mode."""
    with processes(recipe.training) as accelerator:
        checkpoint = claim_folder(recipe, accelerator, resume=resume)
        state = start_state(recipe, accelerator)
        if checkpoint is not None:
            restore(recipe, state, checkpoint, accelerator)
        run_steps(recipe, accelerator, state)
        average = state.ema.average
    assert isinstance(average, Classifier)
    return average


def start_state(recipe: ClassifierRecipe, accelerator: Accelerator) -> RunState:
    """Network, its average and its optimizer before the first step."""
    loop = recipe.training
    torch.manual_seed(loop.seed)
    network = Classifier(recipe.model).to(accelerator.device)
    ema = Ema(network, loop.ema_decay if loop.use_ema else 0.0)
    if loop.activation_checkpointing:
        recompute_activations(network.units)
    optimizer = make_optimizer(network.parameters(), recipe.optimizer, accelerator.device)
    compiled = torch.compile(network) if loop.compile else network
    prepared, optimizer = accelerator.prepare(compiled, optimizer)
    return RunState({"classifier": prepared}, {"classifier": optimizer}, ema)


def run_steps(recipe: ClassifierRecipe, accelerator: Accelerator, state: RunState) -> None:
    """All steps that are left of the run, with its reports and checkpoints."""
    loop, experiment = recipe.training, recipe.experiment
    network, optimizer = state.networks["classifier"], state.optimizers["classifier"]
    pictures = pictures_per_step(recipe, accelerator)
    with RunLog(recipe, accelerator, state, pictures) as log:
        batches = log.throughput.waiting(picture_batches(recipe, accelerator, state))
        for step in range(state.step, loop.max_train_steps):
            loss = backward_passes(recipe, accelerator, state, batches)
            state.step = done = step + 1
            last = done == loop.max_train_steps
            if done % experiment.log_grad_norm_every == 0:
                log.gradient_norms(bare(network))
            rate = learning_rate(recipe, step, pictures)
            norm = update(accelerator, network, optimizer, rate, loop.max_grad_norm)
            state.ema.update(bare(network))
            log.step({"loss": loss, "grad_norm": norm})
            with log.aside():
                if done % experiment.save_every == 0 or last:
                    log.check_finite()
                    save_checkpoint(recipe, state, accelerator)
                if accelerator.is_main_process and (done % experiment.eval_every == 0 or last):
                    log.report(evaluate(state.ema.average, recipe, accelerator.device))


def backward_passes(
    recipe: ClassifierRecipe, accelerator: Accelerator, state: RunState, batches: Iterator[Batch]
) -> Tensor:
    """Sum the gradients of one optimizer step over its batches; returns the mean loss."""
    loop, network = recipe.training, state.networks["classifier"]
    network.train()
    count = loop.gradient_accumulation_steps
    losses = []
    for number in range(count):
        batch = next(batches)
        state.take(batch)
        check_labels(batch.labels, recipe.model.num_classes)
        labels = batch.labels.to(accelerator.device)
        with nullcontext() if number == count - 1 else accelerator.no_sync(network):
            with accelerator.autocast():
                logits = network(batch.images.to(accelerator.device))
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=LABEL_SMOOTHING)
            accelerator.backward(loss / count)
        losses.append(loss.detach())
    return torch.stack(losses).mean()


@torch.inference_mode()
def evaluate(network: Classifier, recipe: ClassifierRecipe, device: torch.device) -> dict[str, float]:
    """Share of the pictures of `evaluation_pictures` whose class the network names rightly."""
    right = pictures = 0
    for batch in evaluation_pictures(recipe, EVALUATION_BATCH):
        guesses = network(batch.images.to(device)).argmax(1)
        right += int((guesses == batch.labels.to(device)).sum())
        pictures += len(guesses)
    return {"accuracy": right / pictures}
