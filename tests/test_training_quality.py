"""Each stage trained on synthetic data for seconds, and measured on pictures that it has not seen.

The same training on one batch for ever is measured beside it: what that reaches too would prove nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.bundle import open_bundle
from models.drawing import draw
from models.runtime.torch_runtime import TorchRuntime
from tests.training_runs import TRAIN, recipe_of, scalars
from training.classifier import Classifier
from training.data.loading import evaluation_batches
from training.data.synthetic import synthetic_shards
from training.evaluation.reconstruction_metrics import psnr
from training.publish import publish_generator, publish_tokenizer

pytestmark = pytest.mark.timeout(600)

CLASSES, TRAINED, HELD_OUT = 6, 120, 20  # pictures of each class
SIDE = 16
QUIET = 10_000  # steps between reports: none but the last
SHARED: dict[str, Any] = {
    "experiment__save_every": QUIET,
    "experiment__generate_every": QUIET,
    "experiment__eval_every": QUIET,
    "experiment__log_every": 50,
    "dataset__params__shuffle_buffer_size": CLASSES * TRAINED,
    "dataset__preprocessing__min_scale": 0.9,
    "lr_scheduler__params__warmup_steps": 20,
    "training__per_gpu_batch_size": 16,
    "training__ema_decay": 0.98,
}
TOKENIZER: dict[str, Any] = {
    "model__vq_model": {
        "hidden_channels": 16,
        "channel_mult": [1, 2, 2],
        "num_resolutions": 3,
        "num_res_blocks": 1,
        "norm_groups": 4,
        "token_size": 10,
        "commitment_cost": 0.025,
        "entropy_loss_weight": 0.002,
    },
    "losses__entropy_annealing_steps": 100,
    "optimizer__params__learning_rate": 3e-3,
    "training__max_train_steps": 450,
}
GENERATOR: dict[str, Any] = {
    "model__vq_model": None,
    "model__mlm_model": {
        "hidden_dim": 64,
        "depth": 2,
        "heads": 4,
        "mlp_dim": 128,
        "dropout": 0.0,
        "codebook_splits": 2,
        "use_prenorm": True,
        "nclass": CLASSES,
        "num_steps": 8,
        "guidance_scale": 2.0,
        "guidance_annealing": "none",
        "randomize_temperature": 2.0,
    },
    "optimizer__params__learning_rate": 3e-3,
    "training__per_gpu_batch_size": 32,
    "training__max_train_steps": 400,
}
JUDGE: dict[str, Any] = {
    "model__classifier": {"widths": [16, 32], "num_classes": CLASSES},
    "optimizer__params__learning_rate": 5e-3,
    "training__max_train_steps": 120,
}
ONE_BATCH = {"training__overfit_batch": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("data")
    synthetic_shards(folder, classes=CLASSES, per_class=TRAINED, val_per_class=HELD_OUT, image_size=SIDE)
    return folder


@pytest.fixture(scope="module")
def held_out(data: Path) -> tuple[Tensor, Tensor]:
    """Pictures and labels of the evaluation shards."""
    (batch,) = evaluation_batches(f"{data}/val-*.tar", SIDE, CLASSES * HELD_OUT)
    return batch.images, batch.labels


def train(kind: str, data: Path, name: str, **changes: Any) -> tuple[Any, Any]:
    """Recipe and network of a finished run."""
    recipe = recipe_of(kind, data, data / "runs", **{**SHARED, "experiment__name": name, **changes})
    return recipe, TRAIN[kind](recipe)


@pytest.fixture(scope="module")
def judge(data: Path) -> Classifier:
    network: Classifier = train("classifier", data, "judge", **JUDGE)[1]
    return network


@pytest.fixture(scope="module")
def tokenizer_bundle(data: Path) -> Path:
    recipe, network = train("tokenizer", data, "tokenizer", **TOKENIZER)
    return publish_tokenizer(network, recipe, data / "tokenizer").path


def share_named(judge: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of the pictures whose class the judge names."""
    with torch.inference_mode():
        return float((judge(images).argmax(1) == labels).float().mean())


def test_a_classifier_names_pictures_it_has_not_seen(
    judge: Classifier, held_out: tuple[Tensor, Tensor]
) -> None:
    assert share_named(judge, *held_out) >= 0.97  # by chance 0.17


def reconstruct(runtime: TorchRuntime, images: Tensor) -> Tensor:
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return as_images(runtime.decode(runtime.encode(pixels)))


def as_images(pixels: Any) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def test_a_tokenizer_gives_back_pictures_it_has_not_seen(
    data: Path, tokenizer_bundle: Path, judge: Classifier, held_out: tuple[Tensor, Tensor]
) -> None:
    images, labels = held_out
    rebuilt = reconstruct(TorchRuntime(open_bundle(str(tokenizer_bundle)), device="cpu"), images)
    reached = psnr(rebuilt, images).mean().item()
    assert reached >= 19.0
    assert share_named(judge, rebuilt, labels) >= 0.95

    _, overfitted = train("tokenizer", data, "tokenizer-one", **TOKENIZER, **ONE_BATCH)
    with torch.inference_mode():
        control = psnr(overfitted(images)[0].clamp(0, 1), images).mean().item()
    assert control <= min(18.0, reached - 1.5)


def test_a_generator_draws_what_it_is_asked_for_and_knows_pictures_it_has_not_seen(
    data: Path, tokenizer_bundle: Path, judge: Classifier
) -> None:
    source = {"experiment__vqgan_checkpoint": str(tokenizer_bundle)}
    recipe, network = train("generator", data, "generator", **GENERATOR, **source)
    bundle = publish_generator(network, recipe, data / "whole")
    runtime = TorchRuntime(bundle, device="cpu")
    labels = torch.arange(CLASSES).repeat(10)
    grids = draw(runtime, bundle.manifest, recipe.sampling, labels.tolist(), list(range(len(labels))))
    assert len({grid.tobytes() for grid in grids}) >= 55  # of 60: no two are alike
    assert share_named(judge, as_images(runtime.decode(grids)), labels) >= 0.9  # by chance 0.17

    control, _ = train("generator", data, "generator-one", **GENERATOR, **source, **ONE_BATCH)
    loss, control_loss = (scalars(run.folder, "eval/masked_loss")[-1][1] for run in (recipe, control))
    assert loss <= 2.0  # with nothing known it is ln 32 = 3.47
    assert control_loss >= loss + 0.3
