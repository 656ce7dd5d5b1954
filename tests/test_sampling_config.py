import json
from typing import Any

import pytest

from models.bundle import Manifest, open_bundle
from models.errors import ConfigError
from models.sampling_config import SamplingConfig
from models.validation import from_mapping

NEWER = {"guidance_cutoff": 0.0, "guidance_interval": (0.0, 1.0), "group_order": "confidence"}


def test_bundles_from_before_the_newer_parameters_load_unchanged(tiny_manifest: Manifest) -> None:
    values = json.loads(tiny_manifest.to_json())
    for name in NEWER:
        del values["sampling"][name]
    older = Manifest.from_json(json.dumps(values))
    assert older == tiny_manifest
    assert {name: getattr(older.sampling, name) for name in NEWER} == NEWER


def test_the_bundled_model_loads() -> None:
    assert open_bundle("fruit").manifest.sampling.steps > 0


def test_all_parameters_survive_a_bundle(tiny_manifest: Manifest) -> None:
    sampling = SamplingConfig(guidance_cutoff=0.1, guidance_interval=(0.25, 0.75), group_order="halton")
    values = json.loads(tiny_manifest.to_json())
    values["sampling"] = json.loads(json.dumps(vars(sampling)))
    manifest = Manifest.from_json(json.dumps(values))
    assert manifest.sampling == sampling
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("guidance_cutoff", -0.1),
        ("guidance_cutoff", float("nan")),
        ("guidance_cutoff", "0"),
        ("guidance_interval", [0.5]),
        ("guidance_interval", [0.5, 0.5]),
        ("guidance_interval", [0.7, 0.3]),
        ("guidance_interval", [-0.1, 1]),
        ("guidance_interval", [0, 1.1]),
        ("guidance_interval", [0, float("nan")]),
        ("guidance_interval", 0.5),
        ("group_order", "raster"),
        ("group_order", None),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        from_mapping(SamplingConfig, {field: value})


def test_built_directly_the_same_bounds_hold() -> None:
    for interval in ((0.5,), (0.5, 0.5), (0.0, 0.5, 1.0), (0.0, float("nan"))):
        with pytest.raises(ConfigError, match="guidance_interval"):
            SamplingConfig(guidance_interval=interval)  # type: ignore[arg-type]
