"""docs/operations.md held to the code: settings, metrics, codes, log lines and tests that it names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.bundle import Bundle
from service.bench.running import RunningService, free_port, running_service
from service.chaos.mutants import MUTANTS
from service.chaos.report import LABELS
from service.errors import ServiceError
from service.gateway.api_keys import KeySet, read_file
from service.settings import Settings
from tests.documents import ROOT, blocks, check_pytest, codes, pytest_lines, read, rows, section

TEXT = read("docs/operations.md")
KEY = "maskbit_doc"


# -- settings ------------------------------------------------------------------------------------------------


def default_of(cell: str) -> Any:
    """The value that a default in the table stands for."""
    text = cell.strip("`")
    if text == "none":
        return None
    if text.endswith(" MiB"):
        return int(text.removesuffix(" MiB")) << 20
    if re.fullmatch(r"[\d,]+", text):
        return int(text.replace(",", ""))
    return Path(text).expanduser() if text.startswith("~") else text


def test_every_setting_is_in_the_table_with_its_default() -> None:
    told = {cells[0].strip("`"): default_of(cells[2]) for cells in rows(section(TEXT, "Settings"))}
    defaults = {
        name: field.get_default(call_default_factory=True) for name, field in Settings.model_fields.items()
    }
    assert told == {
        f"MASKBIT_{name.upper()}": value or None if value == "" else value for name, value in defaults.items()
    }


def test_every_setting_that_a_document_names_exists() -> None:
    known = {f"MASKBIT_{name.upper()}" for name in Settings.model_fields}
    # Of the client, and of tests.
    known |= {"MASKBIT_API_KEY", "MASKBIT_FUZZ_CASES", "MASKBIT_FUZZ_IMAGES", "MASKBIT_PLAN_CASES"}
    for name in ("README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))):
        assert set(re.findall(r"\bMASKBIT_[A-Z_]*[A-Z]\b", read(name))) <= known, name


def test_the_file_of_keys_can_be_read(tmp_path: Path) -> None:
    [table] = blocks(TEXT, "toml")
    file = tmp_path / "keys.toml"
    file.write_text(table)
    [key] = KeySet(tuple(read_file(file))).keys
    assert all(value is not None for name, value in key if name != "burst")


# -- metrics -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(plain_bundle: Bundle) -> Iterator[str]:
    """The metrics of a gateway and of its worker after a picture, a refused request and a wrong key."""
    port = free_port()
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = f"doc:{digest}:requests_per_minute=1"
    settings = {"metrics_port": port, "api_keys": keys}
    with running_service(
        "noop", bundle=str(plain_bundle.path), durability="off", settings=settings
    ) as service:
        yield gateway_metrics(service) + httpx.get(f"http://127.0.0.1:{port}/metrics").text


def gateway_metrics(service: RunningService) -> str:
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=20) as client:
        status = [
            client.post("/generate", json={"class_id": 1}, headers={"X-API-Key": key}).status_code
            for key in (KEY, KEY, "wrong")
        ]
        assert status == [200, 429, 401]
        return client.get("/metrics").text


def measured(text: str) -> dict[str, set[str]]:
    """Labels of each metric of ours, those of buckets left out."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        if family.name.endswith("_created") or not family.name.startswith("maskbit_"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    return found


def test_the_table_of_metrics_is_what_gateway_and_worker_tell(texts: str) -> None:
    metrics = rows(section(TEXT, "Logs, traces, metrics"))
    told = {cells[0].strip("`"): set(filter(None, cells[1].split(", "))) for cells in metrics}
    assert told == measured(texts)


# -- answers, logs, checks -----------------------------------------------------------------------------------


def errors(kind: type[ServiceError] = ServiceError) -> Iterator[tuple[int, str]]:
    """Status and code of all errors of the service."""
    yield kind.status, kind.code
    for one in kind.__subclasses__():
        yield from errors(one)


def test_every_code_is_in_the_table_of_answers_under_its_status() -> None:
    told = set()
    for _, answer, *_ in rows(section(TEXT, "Answers over HTTP")):
        status = 0
        for number, code in re.findall(r"\b(\d{3})\b|`([a-z_]+)`", answer):
            status = int(number) if number else status
            told |= {(status, code)} if code else set()
    # Of the server and the framework.
    others = {(400, "bad_request"), (405, "method_not_allowed"), (431, "headers_too_large")}
    assert told == set(errors()) | others


def test_every_line_of_a_log_that_operators_are_told_of_is_in_the_code() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    lines = [
        code
        for code in codes(section(TEXT, "Trouble"))
        if " " in code and not code.startswith(("maskbit ", "XRANGE"))
    ]
    assert len(lines) > 8
    for line in lines:
        assert all(part in sources for part in line.split("…")), line


def test_the_lines_of_the_chaos_report_are_those_of_the_table() -> None:
    table = rows(section(TEXT, "The queue"))
    told = {label for cells in table for label in cells[2].split("; ") if "maskbit" not in label}
    assert told == set(LABELS.values())
    assert [cells[0].split()[0] for cells in table[:12]] == [f"I{number}" for number in range(1, 13)]
    assert len(MUTANTS) == 8, "the document says eight"


@pytest.mark.parametrize("line", sorted(set(pytest_lines(TEXT))))
def test_every_check_exists(line: str) -> None:
    check_pytest(line)


def test_every_target_of_make_exists() -> None:
    targets = {code.removeprefix("make ") for code in codes(TEXT) if code.startswith("make ")}
    assert targets <= set(re.findall(r"^([a-z]+):", read("Makefile"), flags=re.MULTILINE))
    assert targets


def test_every_promise_and_every_measurement_has_a_command() -> None:
    for title in ("Answers over HTTP", "The queue", "Around it", "Measured"):
        for cells in rows(section(TEXT, title)):
            assert re.search(r"`.*(pytest tests/|maskbit |make )|^the same$", cells[-1]), cells
