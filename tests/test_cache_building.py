"""Token caches built from pictures: what is in them, and what a build leaves that was killed on its way."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from typer.testing import CliRunner

from models.bits import join_groups, unpack
from models.bundle import TOKENIZER_WEIGHTS, Bundle, Manifest
from models.bundle_writer import write_bundle
from models.errors import ConfigError
from models.networks import build_tokenizer
from models.sampling_config import SamplingConfig
from models.tokenizer import Tokenizer
from tests.training_fixtures import picture_bytes, recipe_values, write_tar
from training.cache import building as cache_building
from training.cache.batches import cached_batches
from training.cache.building import (
    BuildReport,
    build_cache,
    build_share,
    claim_cache,
    complete_cache,
    make_plan,
)
from training.cache.manifest import BUILD_PLAN, MANIFEST
from training.cache.part_builder import PartBuilder
from training.cache.token_cache import TokenCache, open_cache
from training.data.cli import data_app
from training.data.pictures import decode
from training.data.sources import find_shards
from training.data.transforms import random_crop
from training.frozen_tokenizer import groups_of, load_frozen_tokenizer
from training.generator_loop import train_generator
from training.recipe import GeneratorRecipe
from training.recipe_file import build_recipe

ROOT = Path(__file__).resolve().parents[1]
PER_PART = 4
PICTURES = 23  # and two samples that are none, in shards of 11 and 14
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def small_parts() -> Iterator[None]:
    """One thread, and parts so small that a shard of the tests has several."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_building, "SAMPLES_PER_PART", PER_PART)
        yield


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for number, keys in enumerate((range(11), range(11, 25))):
        files = []
        for key in keys:
            data = picture_bytes(key, (24, 20))
            files.append((f"{key:04d}.png", data[:60] if key in (5, 24) else data))
            files.append((f"{key:04d}.cls", str(key % 3).encode()))
        write_tar(folder / f"train-{number}.tar", files)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tokenizer with random weights for 16x16 pixels and 8x8 tokens of 4 bits."""
    values = recipe_values("tokenizer", Path("none"), Path("none"))
    recipe = build_recipe("tokenizer", values)
    config = recipe.model  # type: ignore[attr-defined]
    torch.manual_seed(3)
    manifest = Manifest(
        name="small",
        image_size=16,
        tokenizer=config,
        generator=None,
        sampling=SamplingConfig(),
        class_names=("a", "b", "c"),
        licence="CC0-1.0",
    )
    folder = tmp_path_factory.mktemp("bundles") / "small"
    return write_bundle(folder, manifest, {TOKENIZER_WEIGHTS: build_tokenizer(config).state_dict()})


@pytest.fixture(scope="module")
def values(shards: Path, bundle: Bundle) -> dict[str, Any]:
    return recipe_values(
        "generator",
        shards,
        shards / "runs",
        experiment__vqgan_checkpoint=str(bundle.path),
        dataset__preprocessing__min_scale=0.5,
    )


@pytest.fixture(scope="module")
def recipe(values: dict[str, Any]) -> GeneratorRecipe:
    found = build_recipe("generator", values)
    assert isinstance(found, GeneratorRecipe)
    return found


@pytest.fixture(scope="module")
def tokenizer(recipe: GeneratorRecipe) -> Tokenizer:
    return load_frozen_tokenizer(recipe, CPU)


@pytest.fixture(scope="module")
def built(recipe: GeneratorRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "cache"
    report = build(recipe, folder)
    assert (report.encoded, report.manifest.pictures, report.manifest.skipped) == (PICTURES, PICTURES, 2)
    return folder


def build(recipe: GeneratorRecipe, out: Path, *, crops: int = 2, store_flips: bool = False) -> BuildReport:
    report = build_cache(recipe, out, crops=crops, store_flips=store_flips)
    assert report is not None
    return report


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tokens_of(cache: TokenCache, picture: int, variant: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    packed, _ = cache.read(np.array([picture]), np.array([variant]))
    return unpack(packed.tobytes(), (cache.plan.num_tokens,), cache.plan.bits)


def crops_as_documented(
    recipe: GeneratorRecipe, crops: int, flips: str
) -> Iterator[tuple[int, list[Image.Image]]]:
    """Label and variants of every sound picture, in order, made without the code that builds caches."""
    data = replace(recipe.dataset, flip=flips == "drawn")
    for number, shard in enumerate(find_shards(data.train_shards_path_or_url)):
        for sample in shard.read():
            if sample.key in ("0005", "0024"):
                continue
            image = decode(sample.image)
            rngs = [
                np.random.default_rng([recipe.training.seed, number, sample.index, j]) for j in range(crops)
            ]
            made = [random_crop(image, data, rng) for rng in rngs]
            mirrored = [image for crop in made for image in (crop, ImageOps.mirror(crop))]
            yield sample.label, mirrored if flips == "stored" else made


@pytest.mark.parametrize("flips", ["drawn", "stored", "none"])
def test_cached_tokens_are_those_that_training_from_pixels_sees(
    recipe: GeneratorRecipe, tokenizer: Tokenizer, tmp_path: Path, flips: str
) -> None:
    recipe = replace(recipe, dataset=replace(recipe.dataset, flip=flips != "none"))
    build(recipe, tmp_path / "cache", crops=2, store_flips=flips == "stored")
    cache = open_cache(tmp_path / "cache")
    expected = list(crops_as_documented(recipe, 2, flips))
    assert len(cache) == len(expected) == PICTURES
    for picture, (label, crops) in enumerate(expected):
        assert cache.plan.variants == len(crops) == (4 if flips == "stored" else 2)
        assert cache.read(np.array([picture]), np.array([0]))[1].tolist() == [label]
        pixels = torch.from_numpy(np.stack([np.asarray(crop) for crop in crops])).permute(0, 3, 1, 2)
        groups = groups_of(tokenizer, pixels.float() / 255, recipe.model).numpy()
        for variant in range(len(crops)):
            assert np.array_equal(
                tokens_of(cache, picture, variant), join_groups(groups[variant], recipe.model.bits)
            )


def test_batches_come_from_a_cache_that_was_built(
    recipe: GeneratorRecipe, tokenizer: Tokenizer, built: Path
) -> None:
    batch = next(cached_batches(built, recipe.dataset, recipe.model, tokenizer, PICTURES, 0, 0))
    assert batch.groups.shape == (PICTURES, 64, 2)
    assert batch.labels.bincount().tolist() == [8, 8, 7]


def test_a_finished_cache_holds_manifest_and_parts_alone(built: Path) -> None:
    parts = [f"part-{shard:06d}-{part:06d}.npy" for shard, count in ((0, 3), (1, 4)) for part in range(count)]
    assert sorted(path.name for path in built.iterdir()) == [MANIFEST, *parts]


def test_broken_samples_are_skipped_and_logged(
    recipe: GeneratorRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        build(recipe, tmp_path / "cache")
    assert [text.partition(" was skipped")[0].partition(" of ")[0] for text in caplog.messages] == [
        "sample 0005",
        "sample 0024",
    ]


def test_a_second_call_finds_the_cache_complete(recipe: GeneratorRecipe, built: Path) -> None:
    before = contents(built)
    assert build(recipe, built).encoded == 0
    assert contents(built) == before


def test_a_call_with_another_plan_is_refused(recipe: GeneratorRecipe, built: Path) -> None:
    with pytest.raises(ConfigError, match="holds a token cache with other crops; give another folder"):
        build(recipe, built, crops=3)
    other = replace(recipe, training=replace(recipe.training, seed=8))
    with pytest.raises(ConfigError, match="other seed"):
        build(other, built)


def test_a_folder_with_something_else_is_refused(recipe: GeneratorRecipe, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty \(it holds notes\.txt\)"):
        build(recipe, tmp_path)
    with pytest.raises(ConfigError, match="cannot be made"):
        build(recipe, tmp_path / "notes.txt" / "cache")


def test_flips_and_crops_that_the_recipe_rules_out_are_refused(
    recipe: GeneratorRecipe, tmp_path: Path
) -> None:
    plain = replace(recipe, dataset=replace(recipe.dataset, flip=False, use_random_crop=False))
    with pytest.raises(ConfigError, match="flip is off"):
        build(plain, tmp_path / "cache", crops=1, store_flips=True)
    with pytest.raises(ConfigError, match="use_random_crop is off"):
        build(plain, tmp_path / "cache", crops=2)
    assert not (tmp_path / "cache").exists()


def test_a_class_beyond_those_of_the_recipe_is_named(recipe: GeneratorRecipe, tmp_path: Path) -> None:
    few = replace(recipe, model=replace(recipe.model, nclass=2))
    with pytest.raises(
        ConfigError, match=r"sample 0002 of .* is of class 2; the recipe has 2 classes, 0 to 1"
    ):
        build(few, tmp_path / "cache")
    with pytest.raises(ConfigError, match="is unfinished"):
        open_cache(tmp_path / "cache")


def test_shards_without_a_sound_picture_give_no_cache(recipe: GeneratorRecipe, tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", [("0.png", b"none"), ("0.cls", b"0")])
    pattern = str(tmp_path / "train-0.tar")
    empty = replace(recipe, dataset=replace(recipe.dataset, train_shards_path_or_url=pattern))
    with pytest.raises(ConfigError, match="there are no pictures in it"):
        build(empty, tmp_path / "cache")


# Forks a build for each number n and kills it while it writes its n-th file, half of which is there by then.
KILLED_BUILDS = """
import json, os, signal, sys
from pathlib import Path
import torch
from training.cache import building as cache_building
from training.recipe_file import build_recipe

def killing(point):
    def fsync(handle, calls=[]):
        calls.append(handle)
        if len(calls) == 2 * point - 1:  # a sync of the file, one of the folder
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    return fsync

torch.set_num_threads(1)
cache_building.SAMPLES_PER_PART = int(sys.argv[3])
recipe = build_recipe("generator", json.loads(sys.argv[1]))
for point in map(int, sys.argv[4:]):
    child = os.fork()
    if child == 0:
        os.fsync = killing(point)
        cache_building.build_cache(recipe, Path(sys.argv[2], str(point)), crops=2, store_flips=False)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""
FILES = 1 + 2 * 7 + 1  # plan, seven parts with their reports, manifest


def test_a_killed_build_never_loads_as_complete_and_the_next_one_finishes_it(
    values: dict[str, Any], recipe: GeneratorRecipe, built: Path, tmp_path: Path
) -> None:
    points = {1: 23, 2: 23, 7: 16, 8: 13, FILES: 0}  # number of the file: pictures left to encode
    arguments = [json.dumps(values), str(tmp_path), str(PER_PART), *map(str, points)]
    subprocess.run([sys.executable, "-c", KILLED_BUILDS, *arguments], cwd=ROOT, check=True, timeout=100)
    for point, left in points.items():
        folder = tmp_path / str(point)
        with pytest.raises(ConfigError, match="is unfinished" if point > 1 else "no token cache at"):
            open_cache(folder)
        assert build(recipe, folder).encoded == left
        assert contents(folder) == contents(built)


def test_a_build_that_was_killed_after_the_manifest_is_complete(
    recipe: GeneratorRecipe, built: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(built, folder)
    (folder / BUILD_PLAN).write_text("{}")
    (folder / "part-000000-000000.json").write_text("{}")
    assert len(open_cache(folder)) == PICTURES
    assert build(recipe, folder).encoded == 0
    assert contents(folder) == contents(built)


def test_a_full_disk_is_one_clear_message_and_the_next_build_goes_on(
    recipe: GeneratorRecipe, built: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / ".part-000000-000002.npy.partial").symlink_to("/dev/full")
    message = r"part-000000-000002\.npy cannot be written: No space left on device"
    with pytest.raises(ConfigError, match=message) as caught:
        build(recipe, folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="is unfinished"):
        open_cache(folder)
    assert build(recipe, folder).encoded == PICTURES - 7
    assert contents(folder) == contents(built)


def test_a_damaged_report_is_named(recipe: GeneratorRecipe, tmp_path: Path) -> None:
    few = replace(recipe, model=replace(recipe.model, nclass=2))
    with pytest.raises(ConfigError, match="of class 2"):
        build(few, tmp_path / "cache")
    (tmp_path / "cache" / "part-000000-000000.json").write_text("{")
    with pytest.raises(ConfigError, match=r"part-000000-000000\.json cannot be read: .* remove it"):
        build(few, tmp_path / "cache")


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_build_together_what_one_builds(
    recipe: GeneratorRecipe, tokenizer: Tokenizer, built: Path, tmp_path: Path, world: int
) -> None:
    folder, shards = tmp_path / "cache", find_shards(recipe.dataset.train_shards_path_or_url)
    plan = make_plan(recipe, tokenizer, [shard.name for shard in shards], 2, False)
    claim_cache(folder, plan)
    encoded = []
    for rank in range(world):
        with closing(PartBuilder(recipe.dataset, plan, tokenizer, CPU)) as builder:
            process: Any = SimpleNamespace(process_index=rank, num_processes=world, is_main_process=False)
            build_share(builder, folder, shards, process)
            encoded.append(builder.encoded)
    assert min(encoded) >= 7
    complete_cache(folder)
    assert contents(folder) == contents(built)


def test_the_command_builds_a_cache_and_says_what_it_holds(
    values: dict[str, Any], built: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    call = ["cache", str(tmp_path / "recipe.yaml"), "--crops", "2", "--out", str(tmp_path / "cache")]
    result = CliRunner().invoke(data_app, call)
    assert result.exception is None, result.output
    assert "23 pictures in 2 crops of 32 bytes" in result.output
    assert "2 samples skipped; 23 encoded at " in result.output
    assert contents(tmp_path / "cache") == contents(built)
    assert "all were there before" in CliRunner().invoke(data_app, call).output


def test_a_recipe_with_other_crops_does_not_train_from_the_cache(
    recipe: GeneratorRecipe, built: Path, tmp_path: Path
) -> None:
    data = replace(recipe.dataset, token_cache=str(built), min_scale=0.8)
    experiment = replace(recipe.experiment, name="other", output_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"min_scale 0\.5, the recipe has 0\.8; set it as in the cache, or"):
        train_generator(replace(recipe, experiment=experiment, dataset=data))


def test_training_from_a_cache_resumes_with_the_very_next_batch(
    recipe: GeneratorRecipe, built: Path, tmp_path: Path
) -> None:
    data = recipe.dataset
    pattern = data.train_shards_path_or_url
    dataset = replace(data, token_cache=str(built), eval_shards_path_or_url=pattern)
    weights = []
    for name, stops in (("whole", [4]), ("resumed", [2, 4])):
        experiment = replace(recipe.experiment, name=name, output_dir=str(tmp_path))
        for stop in stops:
            training = replace(recipe.training, max_train_steps=stop)
            run = replace(recipe, experiment=experiment, dataset=dataset, training=training)
            network = train_generator(run, resume=True)
        weights.append(network.state_dict())
    whole, resumed = weights
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
