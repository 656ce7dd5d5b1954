"""`maskbit bench training`: stage II from pictures and from a token cache, in turns, on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator

from models.bench import hardware
from models.tokenizer import Tokenizer
from training.cache.building import build_cache
from training.checkpoints import RunState
from training.frozen_tokenizer import load_frozen_tokenizer
from training.generator_loop import backward_passes, flops_of_step, start_state, training_batches
from training.optimization import learning_rate, pictures_per_step, update
from training.processes import processes
from training.recipe import GeneratorRecipe
from training.sharding import bare
from training.throughput import Throughput

WARM_UP = 8  # steps before those that are timed: loader processes start, torch.compile compiles


@dataclass
class Timing:
    """Rounds of training from one kind of data."""

    recipe: GeneratorRecipe
    images_per_s: list[float] = field(default_factory=list)
    data_share: list[float] = field(default_factory=list)
    flops_per_s: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        speeds = self.images_per_s
        return (
            f"{median(speeds):8.1f} images/s ({min(speeds):.1f} to {max(speeds):.1f}), "
            f"{median(self.flops_per_s) / 1e9:8.1f} GFLOP/s of the generator, "
            f"{median(self.data_share):6.2%} of the time waiting for data"
        )


def bench(recipe: GeneratorRecipe, cache: Path | None, *, steps: int, rounds: int) -> Iterator[str]:
    """Lines of the report: `rounds` of `steps` training steps from each kind of data.

    Both train one network with the same losses and batch. Without `cache`, one is made of the recipe's
    shards in a temporary folder.
    """
    with cache_for(recipe, cache) as folder:
        pictures, tokens = (
            Timing(replace(recipe, dataset=replace(recipe.dataset, token_cache=source)))
            for source in (None, str(folder))
        )
        with processes(recipe.training) as accelerator:
            tokenizer = load_frozen_tokenizer(recipe, accelerator.device)
            state = start_state(recipe, accelerator)
            yield from headline(recipe, accelerator, state, steps, rounds)
            for _ in range(rounds):
                for timing in (pictures, tokens):
                    time_round(timing, accelerator, state, tokenizer, steps)
    yield f"pictures {pictures}"
    yield f"cache    {tokens}"
    yield f"cache / pictures {median(tokens.images_per_s) / median(pictures.images_per_s):.2f} x images/s"


@contextmanager
def cache_for(recipe: GeneratorRecipe, cache: Path | None) -> Iterator[Path]:
    """The folder `cache`, that of the recipe, or a temporary one with one crop of each picture."""
    given = cache or (Path(recipe.dataset.token_cache) if recipe.dataset.token_cache else None)
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        build_cache(recipe, Path(folder), crops=1, store_flips=False)
        yield Path(folder)


def headline(
    recipe: GeneratorRecipe, accelerator: Accelerator, state: RunState, steps: int, rounds: int
) -> Iterator[str]:
    """What is measured, and where."""
    model, loop = recipe.model, recipe.training
    millions = sum(p.numel() for p in bare(state.networks["generator"]).parameters()) / 1e6
    yield (
        f"{recipe.experiment.name}: {millions:.1f} M parameters, {model.num_tokens} tokens of "
        f"{model.bits} bits, batch {loop.per_gpu_batch_size}, precision {loop.mixed_precision}, "
        f"compile {loop.compile}, {recipe.dataset.num_workers_per_gpu} loader processes"
    )
    yield f"{accelerator.device}: {hardware()}; {rounds} rounds of {steps} steps each, in turns"


def time_round(
    timing: Timing, accelerator: Accelerator, state: RunState, tokenizer: Tokenizer, steps: int
) -> None:
    """Train for `steps` after a warm-up, and note the speed."""
    recipe = timing.recipe
    throughput = Throughput(pictures_per_step(recipe, accelerator))
    throughput.flops = flops_of_step(recipe, accelerator, state)
    batches = throughput.waiting(training_batches(recipe, accelerator, state, tokenizer))
    for step in range(-WARM_UP, steps):
        if step == 0:
            finish_work(accelerator)
            throughput.report()
        backward_passes(recipe, accelerator, state, tokenizer, batches)
        train_on(recipe, accelerator, state)
        throughput.step()
    finish_work(accelerator)
    for key, value in throughput.report().items():
        getattr(timing, key).append(value)


def train_on(recipe: GeneratorRecipe, accelerator: Accelerator, state: RunState) -> None:
    """Update network and average."""
    network = state.networks["generator"]
    rate = learning_rate(recipe, state.step, pictures_per_step(recipe, accelerator))
    update(accelerator, network, state.optimizers["generator"], rate, recipe.training.max_grad_norm)
    state.ema.update(bare(network))
    state.step += 1


def finish_work(accelerator: Accelerator) -> None:
    """Wait for a GPU."""
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)
