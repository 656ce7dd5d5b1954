"""What the tests of `maskbit plan` share: its command line, a load, and the shares of the parts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from maskbit_cli import build_app
from service.plan.load import Flow, Load
from service.plan.measured import PARTS
from service.plan.saturation import parts_of
from service.plan.sizing import Wish

WISH = Wish(rate=10.0, images=1, steps=8, tokenize_rate=0.0, slots=16, deadline_s=60.0, requests=1500, seed=0)
DRAWING = Flow(rate=100.0, result_bytes=50_000.0)
LOAD = Load(
    flows=(DRAWING,),
    workers=20,
    gateways=2,
    shards=1,
    waiting=10.0,
    open_jobs=50.0,
    lease_s=15.0,
    network_bits_s=1e10,
    disk_bytes_s=125e6,
    kept=0.0,
    result_ttl_s=600.0,
)


def run_plan(*options: str) -> str:
    result = CliRunner().invoke(build_app(["plan"]), ["plan", *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def both_of(*options: str) -> tuple[dict[str, Any], str]:
    return values_of(*options), run_plan(*options)


def values_of(*options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run_plan(*options, "--json"))
    return found


def share(name: str, load: Load) -> float:
    [part] = [part for part in parts_of(load, PARTS) if part.name.startswith(name)]
    assert not part.of or sum(used for _, used in part.of) == pytest.approx(part.used)
    return part.share
