"""What the three loops have in common, and whole runs of published files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    MaskBitError,
    RuntimeUnavailable,
    TrainingError,
)
from models.networks import build_tokenizer
from tests.published_recipes import write_published
from tests.training_runs import (
    ADVERSARY,
    KINDS,
    TRAIN,
    assert_same,
    curve,
    recipe_of,
    scalar_names,
    scalars,
    write_data,
)
from training.checkpoints import checkpoint_files, load_checkpoint
from training.recipe_file import build_recipe, load_values

STEADY = {"lr_scheduler__params__warmup_steps": 0}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


TOLD = {
    "tokenizer": ("train/reconstruction", "train/discriminator_loss", "eval/psnr_db", "eval/codebook_usage"),
    "generator": ("train/masked_loss", "train/masked_accuracy", "eval/masked_loss", "eval/masked_accuracy"),
    "classifier": ("train/loss", "eval/accuracy"),
}
GRIDS = {"tokenizer": "reconstructions", "generator": "samples"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_reports_at_its_pace_and_at_its_end(kind: str, data: Path, tmp_path: Path) -> None:
    pace = {
        "training__max_train_steps": 5,
        "experiment__log_every": 1,
        "experiment__log_grad_norm_every": 4,
        "experiment__save_every": 2,
        "experiment__eval_every": 3,
        "experiment__generate_every": 4,
    }
    changes = {**ADVERSARY, "losses__discriminator_start": 0} if kind == "tokenizer" else {}
    recipe = recipe_of(kind, data, tmp_path, **pace, **changes)
    network = TRAIN[kind](recipe)
    assert not network.training
    assert [int(path.stem[-8:]) for path in checkpoint_files(recipe.folder)] == [4, 5]
    for name in (*TOLD[kind], "train/images_per_s", "train/data_share"):
        steps = [step for step, _ in scalars(recipe.folder, name)]
        assert steps == ([3, 5] if name.startswith("eval") else [1, 2, 3, 4, 5]), name
    if kind in GRIDS:
        grids = sorted(path.name for path in recipe.folder.glob("*.png"))
        assert grids == [f"{GRIDS[kind]}-{step:08d}.png" for step in (4, 5)]
    gradients = [name for name in scalar_names(recipe.folder) if name.startswith("gradient/")]
    assert len(gradients) > 4
    assert all(scalars(recipe.folder, name)[0][0] == 4 for name in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_average_the_newest_weights_are_the_result(kind: str, data: Path, tmp_path: Path) -> None:
    network = TRAIN[kind](recipe_of(kind, data, tmp_path, training__use_ema=False, **STEADY))
    stored = load_checkpoint(checkpoint_files(tmp_path / "run")[-1])
    assert_same(dict(network.state_dict()), dict(stored["networks"][kind]))
    assert_same(dict(stored["ema"]), dict(stored["networks"][kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_lags_behind_the_weights(kind: str, data: Path, tmp_path: Path) -> None:
    TRAIN[kind](recipe_of(kind, data, tmp_path, **STEADY))
    stored = load_checkpoint(checkpoint_files(tmp_path / "run")[-1])
    assert stored["ema_updates"] == 4
    assert any(not torch.equal(value, stored["networks"][kind][key]) for key, value in stored["ema"].items())


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_gives_nearly_the_same_losses(kind: str, data: Path, tmp_path: Path) -> None:
    curves = []
    for precision in ("no", "bf16"):
        changes = {"training__mixed_precision": precision, "experiment__log_every": 1, **STEADY}
        recipe = recipe_of(kind, data, tmp_path / precision, **changes)
        network = TRAIN[kind](recipe)
        assert all(value.dtype == torch.float32 for value in network.state_dict().values())
        curves.append(curve(recipe.folder))
    assert curves[0] != curves[1]
    assert curves[1] == pytest.approx(curves[0], rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_for_ever_is_learned_by_heart(kind: str, data: Path, tmp_path: Path) -> None:
    changes = {
        "training__overfit_batch": True,
        "training__max_train_steps": 30,
        "experiment__log_every": 1,
        "experiment__eval_every": 30,
        "experiment__generate_every": 30,
        "experiment__save_every": 30,
        "optimizer__params__learning_rate": 1e-2,
    }
    recipe = recipe_of(kind, data, tmp_path, **changes)
    TRAIN[kind](recipe)
    losses = curve(recipe.folder, "train/reconstruction" if kind == "tokenizer" else "train/loss")
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_changes_no_bit(kind: str, data: Path, tmp_path: Path) -> None:
    plain = TRAIN[kind](recipe_of(kind, data, tmp_path / "plain", **STEADY))
    thrifty = recipe_of(kind, data, tmp_path / "thrifty", training__activation_checkpointing=True, **STEADY)
    assert_same(TRAIN[kind](thrifty).state_dict(), plain.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_networks_train_and_store_their_own_keys(
    kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the graphs of dynamo run as they are, since inductor takes minutes on a CPU."""
    compiled = []

    def traced(module: nn.Module) -> Any:
        compiled.append(module)
        return optimize(module, backend="eager")

    optimize = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    changes = {"experiment__log_every": 1, "training__max_train_steps": 2, **STEADY}
    plain, fast = (
        recipe_of(kind, data, tmp_path / name, training__compile=name == "fast", **changes)
        for name in ("plain", "fast")
    )
    networks = [TRAIN[kind](recipe) for recipe in (plain, fast)]
    assert len(compiled) == 1
    assert networks[0].state_dict().keys() == networks[1].state_dict().keys()
    # dropout draws other numbers in a graph, and Adam's first steps have the size of the rate
    assert curve(fast.folder) == pytest.approx(curve(plain.folder), rel=0.05)
    states = [load_checkpoint(checkpoint_files(recipe.folder)[-1])["networks"] for recipe in (plain, fast)]
    assert states[0][kind].keys() == states[1][kind].keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_explodes_ends_the_run_before_anything_wrong_is_saved(
    kind: str, data: Path, tmp_path: Path
) -> None:
    wild = {
        "optimizer__params__learning_rate": 1e30,
        "lr_scheduler__params__warmup_steps": 1,
        "training__max_train_steps": 20,
        "experiment__log_every": 20,
        "experiment__save_every": 1,
    }
    recipe = recipe_of(kind, data, tmp_path, **wild)
    with pytest.raises(TrainingError) as caught:
        TRAIN[kind](recipe)
    files = checkpoint_files(recipe.folder)
    step = int(files[-1].stem[-8:])
    assert f"at or shortly before step {step + 1} " in str(caught.value)
    assert f"the last good checkpoint is {files[-1]}" in str(caught.value)
    assert "\n" not in str(caught.value)
    for file in files:
        stored = load_checkpoint(file)
        for tensors in (stored["networks"][kind], stored["ema"]):
            assert all(bool(value.isfinite().all()) for value in tensors.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_keeps_the_last_good_checkpoint_from_which_the_run_goes_on(
    kind: str, data: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(kind, data, tmp_path)
    (recipe.folder).mkdir()
    blocked = recipe.folder / ".checkpoint-00000004.pt.partial"
    blocked.symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"0004\.pt cannot be written \(.*0002\.pt$"):
        TRAIN[kind](recipe)
    TRAIN[kind](recipe, resume=True)
    assert load_checkpoint(checkpoint_files(recipe.folder)[-1])["step"] == 4


SMALL_TOKENIZER = [
    "model.vq_model.hidden_channels=8",
    "model.vq_model.channel_mult=[1,2]",
    "model.vq_model.num_resolutions=2",
    "model.vq_model.num_res_blocks=1",
    "model.vq_model.norm_groups=4",
    "dataset.preprocessing.resolution=16",
    "dataset.params.num_workers_per_gpu=0",
    "training.max_train_steps=2",
    "training.per_gpu_batch_size=2",
    "training.device=cpu",
    "lr_scheduler.params.warmup_steps=1",
]


def small_run(name: str, data: Path, *overrides: str) -> Any:
    """A published file, of which overrides change the sizes, the data and the length."""
    places = [
        f"experiment.output_dir={data / 'runs'}",
        f"dataset.params.train_shards_path_or_url={data}/train-*.tar",
        f"dataset.params.eval_shards_path_or_url={data}/val-*.tar",
    ]
    kind = "generator" if "generator" in name else "tokenizer"
    path = write_published(data, name)
    return build_recipe(kind, load_values(path, [*SMALL_TOKENIZER, *places, *overrides]))


@pytest.mark.parametrize("name", ["maskbit_tokenizer_18bit", "vqgan_plus_12bit"])
def test_a_published_tokenizer_file_trains_but_for_its_sizes(name: str, data: Path, tmp_path: Path) -> None:
    recipe = small_run(
        name,
        data,
        f"experiment.output_dir={tmp_path}",
        "model.discriminator.hidden_channels=32",
        "model.discriminator.num_stages=1",
        "losses.discriminator_start=1",
        "losses.perceptual_loss=none",
    )
    network = TRAIN["tokenizer"](recipe, resume=recipe.experiment.resume)
    stored = load_checkpoint(checkpoint_files(recipe.folder)[-1])
    assert stored["step"] == 2
    assert stored["networks"].keys() == stored["optimizers"].keys() == {"tokenizer", "adversary"}
    assert recipe.model.bits == (18 if "18bit" in name else 12)
    assert all(bool(value.isfinite().all()) for value in network.state_dict().values())


def test_a_published_generator_file_trains_but_for_its_sizes(data: Path, tmp_path: Path) -> None:
    overrides = [
        f"experiment.output_dir={tmp_path}",
        "model.mlm_model.hidden_dim=16",
        "model.mlm_model.depth=1",
        "model.mlm_model.heads=2",
        "model.mlm_model.mlp_dim=32",
        "model.mlm_model.num_steps=4",
    ]
    name = "maskbit_generator_14bit"
    described = small_run(name, data, *overrides)
    weights = tmp_path / "maskbit_tokenizer_14bit.bin"
    torch.save(build_tokenizer(described.tokenizer).state_dict(), weights)
    recipe = small_run(name, data, *overrides, f"experiment.vqgan_checkpoint={weights}")
    TRAIN["generator"](recipe, resume=recipe.experiment.resume)
    assert load_checkpoint(checkpoint_files(recipe.folder)[-1])["step"] == 2
    assert (recipe.folder / "samples-00000002.png").is_file()


def test_a_run_may_start_from_the_weights_of_another(data: Path, tmp_path: Path) -> None:
    for kind in ("tokenizer", "generator"):
        first = recipe_of(kind, data, tmp_path, experiment__name=f"{kind}-first")
        network = TRAIN[kind](first)
        save_file(network.state_dict(), tmp_path / f"{kind}.safetensors")
        # one step at a rate of 0 leaves the weights as they are
        still = {"training__max_train_steps": 1, "lr_scheduler__params__warmup_steps": 1}
        for number, source in enumerate((first.folder, tmp_path / f"{kind}.safetensors")):
            changes = {"experiment__name": f"{kind}-{number}", "experiment__init_checkpoint": str(source)}
            second = TRAIN[kind](recipe_of(kind, data, tmp_path, **still, **changes))
            assert_same(second.state_dict(), network.state_dict())


@pytest.mark.parametrize(
    ("kind", "changes", "error", "message"),
    [
        ("tokenizer", {"dataset__params__train_shards_path_or_url": "none.tar"}, ConfigError, "none.tar"),
        ("generator", {"experiment__vqgan_checkpoint": "nowhere"}, BundleError, "nowhere"),
        ("generator", {"model__vq_model__hidden_channels": 16}, CheckpointError, "hidden|shape|missing"),
        (
            "generator",
            {"model__mlm_model__nclass": 2},
            ConfigError,
            "a shard holds class 2; the recipe has 2 classes, 0 to 1",
        ),
        (
            "classifier",
            {"model__classifier__num_classes": 2},
            ConfigError,
            "a shard holds class 2; the recipe has 2 classes, 0 to 1",
        ),
        ("tokenizer", {"experiment__init_checkpoint": "nowhere"}, BundleError, "nowhere"),
        ("generator", {"dataset__params__token_cache": "nowhere"}, ConfigError, "nowhere"),
    ],
)
def test_what_a_run_cannot_use_is_named_in_one_line(
    kind: str, changes: dict[str, Any], error: type[MaskBitError], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        TRAIN[kind](recipe_of(kind, data, tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_absent_device_is_refused_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of("tokenizer", data, tmp_path / "runs", training__device="cuda")
    with pytest.raises(RuntimeUnavailable, match=r"training\.device is 'cuda', but PyTorch sees no CUDA GPU"):
        TRAIN["tokenizer"](recipe)
    assert not (tmp_path / "runs").exists()
