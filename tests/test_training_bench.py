from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from maskbit_cli import build_app
from models.networks import build_tokenizer
from tests.training_fixtures import recipe_values
from training import bench as bench_module
from training.bench import bench
from training.data.synthetic import synthetic_shards
from training.recipe import GeneratorRecipe
from training.recipe_file import build_recipe


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GeneratorRecipe:
    torch.set_num_threads(1)
    monkeypatch.setattr(bench_module, "WARM_UP", 1)
    synthetic_shards(tmp_path / "data", classes=3, per_class=6, val_per_class=1, image_size=16)
    values = recipe_values("generator", tmp_path / "data", tmp_path / "runs")
    found = build_recipe("generator", values)
    assert isinstance(found, GeneratorRecipe)
    weights = tmp_path / "tokenizer.pt"
    torch.save(build_tokenizer(found.tokenizer).state_dict(), weights)
    return replace(found, experiment=replace(found.experiment, vqgan_checkpoint=str(weights)))


def test_both_kinds_of_data_are_timed_side_by_side(recipe: GeneratorRecipe, tmp_path: Path) -> None:
    headline, machine, pictures, cache, ratio = bench(recipe, None, steps=2, rounds=2)
    assert headline.startswith("run: ")
    assert "64 tokens of 4 bits, batch 4" in headline
    assert machine.startswith("cpu: ")
    assert "2 rounds of 2 steps" in machine
    for line, name in ((pictures, "pictures"), (cache, "cache")):
        assert line.split()[0] == name
        assert "images/s" in line
        assert "waiting for data" in line
    speeds = [float(line.split()[1]) for line in (pictures, cache)]
    assert float(ratio.split()[3]) == pytest.approx(speeds[1] / speeds[0], rel=0.05)
    assert not (tmp_path / "runs").exists()


def test_the_benches_of_all_packages_stand_together() -> None:
    text = CliRunner().invoke(build_app(["bench"]), ["bench", "--help"]).output
    assert [name for name in ("models", "service", "training") if f"  {name} " in text] == [
        "models",
        "service",
        "training",
    ]
