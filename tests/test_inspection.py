from __future__ import annotations

from dataclasses import replace

import pytest

from models.bundle import Bundle
from models.inspection import describe
from models.sampling_config import SamplingConfig


@pytest.mark.parametrize(
    ("sampling", "line"),
    [
        (SamplingConfig(), "64 steps, guidance 7.1 (cosine), noise 7.8, arccos"),
        (SamplingConfig(guidance_cutoff=0.25), "arccos, guidance_cutoff 0.25"),
        (SamplingConfig(guidance_interval=(0.1, 0.9)), "arccos, guidance_interval 0.1 to 0.9"),
        (SamplingConfig(group_order="halton"), "arccos, group_order halton"),
    ],
)
def test_sampling_shows_what_differs_from_the_usual(
    tiny_bundle: Bundle, sampling: SamplingConfig, line: str
) -> None:
    bundle = replace(tiny_bundle, manifest=replace(tiny_bundle.manifest, sampling=sampling))
    assert describe(bundle)["sampling"].endswith(line)
