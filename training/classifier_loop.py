"""Train the classifier that judges pictures (`maskbit train classifier`)."""

import torch
import torch.nn.functional as F

from models.runtime.torch_runtime import choose_device
from training.checkpoints import resume_step, save_checkpoint
from training.classifier import Classifier, accuracy
from training.config import ClassifierRecipe
from training.data import check_labels, evaluation_batches, training_loader
from training.ema import Ema
from training.run import RunLog, autocast, make_optimizer, optimizer_step, seed_step


def train_classifier(recipe: ClassifierRecipe, *, resume: bool = False) -> Classifier:
    """Run `recipe` to its last step and return the averaged network, in eval mode."""
    loop = recipe.training
    device = choose_device(loop.device)
    torch.manual_seed(loop.seed)
    network = Classifier(recipe.model).to(device)
    ema = Ema(network, loop.ema_decay)
    optimizer = make_optimizer(network, recipe.optimizer)
    start = resume_step(recipe, network, ema, optimizer, resume=resume)
    batches = training_loader(recipe.dataset, loop.per_gpu_batch_size, loop.seed, start)

    with RunLog(recipe, start) as log:
        for step in range(start, loop.max_train_steps):
            seed_step(loop.seed, step)
            batch = next(batches)
            check_labels(batch.labels, recipe.model.num_classes)
            network.train()
            with autocast(device, loop.mixed_precision):
                logits = network(batch.images.to(device))
            loss = F.cross_entropy(logits.float(), batch.labels.to(device), label_smoothing=0.1)
            norm = optimizer_step(recipe, network, optimizer, loss, step)
            ema.update(network)

            done = step + 1
            log.step(done, {"loss": loss.item(), "grad_norm": norm})
            if done % recipe.experiment.eval_every == 0 or done == loop.max_train_steps:
                log.report(done, evaluate(ema.average, recipe, device))
            if done % recipe.experiment.save_every == 0 or done == loop.max_train_steps:
                save_checkpoint(recipe, done, network, ema, optimizer)
    return ema.average


def evaluate(network: Classifier, recipe: ClassifierRecipe, device: torch.device) -> dict[str, float]:
    """Accuracy on the evaluation shards."""
    batches = list(evaluation_batches(recipe.dataset.eval_shards, recipe.dataset.image_size, 64))
    images = torch.cat([batch.images for batch in batches]).to(device)
    labels = torch.cat([batch.labels for batch in batches]).to(device)
    return {"accuracy": accuracy(network, images, labels)}
