"""The presets against the specification's tables and the published configurations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models.errors import ConfigError
from models.presets import GENERATORS, NAMES, TOKENIZER_SCORES, TOKENIZERS, find_preset
from models.schedule import plan_steps

ROWS = {
    "vqgan_plus_10bit": "VQGAN+ 10 bit (paper)",
    "vqgan_plus_10bit_retrained": "VQGAN+ 10 bit",
    "vqgan_plus_12bit": "VQGAN+ 12 bit",
    "maskbit_tokenizer_10bit": "MaskBit 10 bit",
    "maskbit_tokenizer_12bit": "MaskBit 12 bit",
    "maskbit_tokenizer_14bit": "MaskBit 14 bit",
    "maskbit_tokenizer_16bit": "MaskBit 16 bit",
    "maskbit_tokenizer_18bit": "MaskBit 18 bit (17 used)",
    "taming_vqgan_tokenizer": "Taming-VQGAN 10 bit",
    "maskgit_tokenizer": "MaskGIT tokenizer 10 bit",
}


@pytest.fixture(scope="module")
def rows(shared_data: Path) -> dict[str, list[str]]:
    """Rows of the specification's tables by their first cell."""
    lines = (shared_data / "SPEC.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in cells}


@pytest.mark.shared
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_has_the_scores_of_the_published_table(name: str, rows: dict[str, list[str]]) -> None:
    scores = find_preset(name).scores
    assert [scores[key] for key in TOKENIZER_SCORES] == [float(cell) for cell in rows[ROWS[name]]]


@pytest.mark.shared
@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_has_the_published_test_time_settings(name: str, rows: dict[str, list[str]]) -> None:
    preset = find_preset(name)
    model, sampling = preset.model, preset.model.sampling
    assert model.generator is not None
    cells = rows[str(model.generator.bits)]
    fid, *others = re.findall(r"\d\.\d\d", cells[3])
    if sampling.steps == 64:
        wanted = [float(cell) for cell in cells[:3]]
        assert [sampling.guidance_scale, sampling.noise_temperature, sampling.guidance_pow] == wanted
    fids = {64: fid, **dict(zip((128, 256), others, strict=False))}
    assert preset.scores == {"fid": float(fids[sampling.steps])}
    assert (sampling.mask_schedule, sampling.guidance_annealing, sampling.temperature) == (
        "arccos",
        "cosine",
        1.0,
    )


@pytest.mark.parametrize("name", GENERATORS)
def test_every_generators_settings_can_be_run(name: str) -> None:
    model = find_preset(name).model
    assert model.generator is not None
    assert model.generator.bits == model.tokenizer.bits == int(name.split("_")[2].removesuffix("bit"))
    groups = model.generator.num_tokens * model.generator.codebook_splits
    assert len(plan_steps(model.sampling, groups)) == model.sampling.steps


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_found_by_the_name_of_its_model(name: str) -> None:
    assert find_preset(name).model.name == name


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean maskbit_generator_14bit"):
        find_preset("maskbit_generator_14bits")
    with pytest.raises(ConfigError, match=r"there are vqgan_plus_10bit, .*maskbit_generator_18bit$"):
        find_preset("zzzz")
