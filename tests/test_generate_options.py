"""The sampling options of `maskbit generate`."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from maskbit_cli import build_app
from models.bundle import Bundle
from models.drawing import draw
from models.errors import ConfigError
from models.runtime.torch_runtime import TorchRuntime
from models.sampling_config import SamplingConfig

CHOSEN: dict[str, Any] = {
    "steps": 6,
    "guidance_scale": 2.0,
    "guidance_annealing": "linear",
    "guidance_pow": 2.0,
    "guidance_cutoff": 0.5,
    "guidance_interval": (0.0, 0.8),
    "temperature": 0.7,
    "anneal_temperature": True,
    "noise_temperature": 3.0,
    "mask_schedule": "cosine",
    "group_order": "halton",
}


def arguments_of(options: dict[str, Any]) -> list[str]:
    arguments = []
    for name, value in options.items():
        arguments.append("--" + name.replace("_", "-"))
        values = value if isinstance(value, tuple) else (value,)
        arguments += [str(one) for one in values if one is not True]
    return arguments


def test_every_parameter_is_an_option_and_passes_are_told(tiny_bundle: Bundle, tmp_path: Path) -> None:
    assert set(CHOSEN) == {field.name for field in fields(SamplingConfig)}
    command = ["generate", "--class", "cherry", "--seed", "5", "--bundle", str(tiny_bundle.path)]
    command += ["--out", str(tmp_path), "--device", "cpu", *arguments_of(CHOSEN)]
    result = CliRunner().invoke(build_app(["generate"]), command)
    assert result.exit_code == 0, result.output
    # Scales 0, 1/3, 2/3, 1, 4/3 and, outside the interval, 5/3: three above the cutoff.
    assert "forward passes a picture: 9 (6 conditional, 3 unconditional, 3 saved)" in result.stderr

    runtime, manifest = TorchRuntime(tiny_bundle, device="cpu"), tiny_bundle.manifest
    grids = draw(runtime, manifest, replace(manifest.sampling, **CHOSEN), [2], [5])
    with Image.open(tmp_path / "cherry-5.png") as picture:
        assert np.array_equal(np.asarray(picture), runtime.decode(grids)[0])


@pytest.mark.parametrize(
    "options",
    [
        {"group_order": "spiral"},
        {"guidance_interval": (0.5, 0.2)},
        {"guidance_pow": 0.0},
        {"mask_schedule": "x"},
    ],
)
def test_a_wrong_value_is_refused_by_name(tiny_bundle: Bundle, options: dict[str, Any]) -> None:
    command = ["generate", "--class", "cherry", "--bundle", str(tiny_bundle.path), *arguments_of(options)]
    result = CliRunner().invoke(build_app(["generate"]), command)
    assert isinstance(result.exception, ConfigError)
    assert next(iter(options)) in str(result.exception)
