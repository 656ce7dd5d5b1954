"""Schemathesis against /openapi.json of the real service: nothing that it thinks of may get a 5xx, or an
answer that the document does not describe. It finds new routes by itself.

MASKBIT_FUZZ_CASES=20000 is the long form; the short one has at least a thousand cases.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image
from redis import Redis

from models.bundle import Bundle
from service.bench.running import RunningService, running_service
from service.gateway.gate import OPEN_PATHS
from service.jobs.keys import Keys
from tests.gateway_harness import until

CASES = int(os.environ.get("MASKBIT_FUZZ_CASES", "1000"))
CONFIG = Path(__file__).with_name("schemathesis.toml")


# Room for all jobs whose results are never fetched.
SETTINGS = {"result_ttl_s": 5, "open_jobs": 20_000, "tenant_jobs": 20_000}


@pytest.fixture(scope="module")
def service(plain_bundle: Bundle) -> Iterator[RunningService]:
    """The real service around a runtime that does nothing."""
    with running_service("noop", bundle=str(plain_bundle.path), durability="off", settings=SETTINGS) as one:
        yield one


def picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "yellow").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def grid_of(item: dict[str, Any]) -> dict[str, Any]:
    row = {"type": "array", "items": item, "minItems": 8, "maxItems": 8}
    return {**row, "items": row}


_INDICES = grid_of({"type": "integer", "minimum": 0, "maximum": 63})
_CLASSES = ("class_id", "class_name")
_SOURCES = ("tokens", "indices", "packed", "image")
_OF_SOURCES = ("mask", "grid", "bits_per_token", "bit_order", "fit")


def of_the_tiny_model() -> dict[str, dict[str, Any]]:
    """What fields hold for the tiny model, so that most bodies get further than to the first 422."""
    source = {"type": "object", "properties": {"indices": _INDICES}, "additionalProperties": False}
    return {
        "model": {"enum": ["tiny"]},
        "class_id": {"type": "integer", "minimum": 0, "maximum": 4},
        "class_name": {"enum": ["apple", ["lemon", "cherry"]]},
        "prompt": {"enum": ["apple", "4"]},
        "n": {"type": "integer", "minimum": 1, "maximum": 4},
        "steps": {"type": "integer", "minimum": 1, "maximum": 8},
        "tokens": grid_of({"type": "string", "pattern": "^[01]{6}$"}),
        "indices": _INDICES,
        "packed": {"enum": [base64.b64encode(bytes(range(48))).decode()]},
        "image": {"enum": [picture()]},
        "mask": {"enum": [[[int(row < 4)] * 8 for row in range(8)], picture()]},
        "grid": {"enum": [[8, 8]]},
        "bits_per_token": {"enum": [6]},
        "operations": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": {
                "oneOf": [
                    {
                        "type": "object",
                        "properties": {
                            "op": {"enum": ["flip", "set", "clear"]},
                            "bits": {"enum": [[0], [5, 1, 1]]},
                            "box": {"enum": [[0, 0, 8, 8], [1, 2, 3, 4]]},
                        },
                        "required": ["op", "bits"],
                        "additionalProperties": False,
                    },
                    {
                        "type": "object",
                        "properties": {"op": {"enum": ["mix"]}, "with": {**source, "required": ["indices"]}},
                        "required": ["op", "with"],
                        "additionalProperties": False,
                    },
                ]
            },
        },
    }


def narrowed(schema: dict[str, Any]) -> dict[str, Any]:
    """A body's schema for the tiny model, once for each way to say the classes and the picture."""
    if "oneOf" in schema:
        return {"oneOf": [narrowed(one) for one in schema["oneOf"]]}
    present, values = schema["properties"], of_the_tiny_model()
    classes: list[str | None] = [name for name in _CLASSES if name in present] or [None]
    sources: list[str | None] = [name for name in _SOURCES if name in present] or [None]
    ways = []
    for wanted in product(classes, sources + [None] * ("mask" in present)):
        left_out = {*_CLASSES, *_SOURCES} - {*wanted}
        needed = [name for name in wanted if name]
        if "mask" in present:
            left_out |= set() if wanted[1] else {*_OF_SOURCES}
            needed += ["mask"] if wanted[1] else []
        kept = {name: values.get(name, one) for name, one in present.items() if name not in left_out}
        required = sorted({*schema.get("required", ()), *needed})
        ways.append({**schema, "properties": kept, "required": required})
    return {"anyOf": ways}


def for_the_tiny_model(described: dict[str, Any]) -> dict[str, Any]:
    """The document, in which requests are those for the tiny model."""
    described = deepcopy(described)
    operations = [one for methods in described["paths"].values() for one in methods.values()]
    for operation in operations:
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" in content:
            content["application/json"]["schema"] = narrowed(content["application/json"]["schema"])
        for parameter in operation.get("parameters", ()):
            if parameter["name"] == "model":
                parameter["schema"] = {"enum": ["tiny"]}
    return described


def run_schemathesis(port: int, described: dict[str, Any], folder: Path, *options: str) -> int:
    """The number of cases, all of which passed."""
    schema = folder / "openapi.json"
    schema.write_text(json.dumps(described))
    operations = sum(len(methods) for methods in described["paths"].values())
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    command += ["--config-file", str(CONFIG), "run", str(schema), "--url", f"http://127.0.0.1:{port}"]
    command += ["--max-examples", str(CASES // operations + 1), "--generation-deterministic"]
    command += ["--continue-on-failure", "--no-color", "--request-timeout", "20", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    return sum(int(count.replace(",", "")) for count in re.findall(r"([\d,]+) generated", report))


def resident_mb(service: RunningService) -> list[float]:
    gateway, worker = (psutil.Process(service.pids[part]) for part in ("gateway", "worker"))
    processes = [gateway, worker, *gateway.children()]
    return [process.memory_info().rss / 1e6 for process in processes]


def open_jobs(service: RunningService, bundle: Bundle) -> int:
    with Redis.from_url(service.redis_url) as redis:
        return int(redis.zcard(Keys(bundle.manifest.name, bundle.revision).open))


@pytest.mark.timeout(120 + CASES // 10)
def test_no_request_that_the_document_describes_or_forbids_makes_the_service_fail(
    service: RunningService, plain_bundle: Bundle, tmp_path: Path
) -> None:
    before = resident_mb(service)
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=20) as client:
        described = client.get("/openapi.json").json()
        cases = run_schemathesis(service.port, described, tmp_path)
        # What is refused was tried above; here most requests are carried out.
        accepted = ("--mode", "positive", "--phases", "fuzzing,stateful")
        cases += run_schemathesis(service.port, for_the_tiny_model(described), tmp_path, *accepted)
        assert cases >= CASES
        assert client.get("/readyz").status_code == 200
        lines = client.get("/metrics").text.splitlines()
        shed = [line for line in lines if line.startswith("maskbit_shed_total")]
        assert {line.rsplit(" ", 1)[1] for line in shed} == {"0.0"}
    until(lambda: open_jobs(service, plain_bundle) == 0)
    after = resident_mb(service)
    assert len(after) == len(before)
    growth = [now - then for now, then in zip(after, before, strict=True)]
    assert max(growth) < 30, growth


def test_with_api_keys_every_route_but_the_open_ones_asks_for_one(
    plain_bundle: Bundle, tmp_path: Path
) -> None:
    key = "maskbit_of-a-test"
    settings = {**SETTINGS, "api_keys": f"shop:{hashlib.sha256(key.encode()).hexdigest()}"}
    with running_service(
        "noop", bundle=str(plain_bundle.path), durability="off", settings=settings
    ) as service:
        described = httpx.get(f"http://127.0.0.1:{service.port}/openapi.json").json()
        few = ["--phases", "fuzzing", "--max-examples", "5", "--header", f"Authorization: Bearer {key}"]
        # After ten wrong keys a minute the answer is 429 and no longer the 401 that this check wants.
        few += ["--exclude-checks", "ignored_auth"]
        assert run_schemathesis(service.port, described, tmp_path, *few) > 20
        closed = {path: one for path, one in described["paths"].items() if path not in OPEN_PATHS}
        assert len(closed) > 8
        for path, methods in closed.items():
            for method in methods:
                reply = httpx.request(method, f"http://127.0.0.1:{service.port}{path}")
                assert reply.status_code == 401, path
