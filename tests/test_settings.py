"""Environment variables that are settings, and those that nearly are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings, misspelt
from tests.gateway_harness import until
from tests.service_fixtures import serving

HINT = "MASKBIT_API_KEY_FILE is no setting; did you mean MASKBIT_API_KEYS_FILE?"


def test_a_name_that_is_nearly_that_of_a_setting_is_told_with_it() -> None:
    typed = {
        "MASKBIT_API_KEY_FILE": "MASKBIT_API_KEYS_FILE",
        "MASKBIT_KEYS_FILE": "MASKBIT_API_KEYS_FILE",
        "MASKBIT_BUNDLES": "MASKBIT_BUNDLE",
        "MASKBIT_LOGLEVEL": "MASKBIT_LOG_LEVEL",
        "MASKBIT_REDIS_URI": "MASKBIT_REDIS_URL",
        "MASKBIT_TRUSTED_PROXY": "MASKBIT_TRUSTED_PROXIES",
    }
    assert misspelt([*typed, "maskbit_hots", "PATH", "API_KEY_FILE"]) == {
        **typed,
        "MASKBIT_HOTS": "MASKBIT_HOST",
    }


def test_settings_and_the_variables_of_clients_and_tests_are_not_told() -> None:
    known = [f"MASKBIT_{name.upper()}" for name in Settings.model_fields]
    tests = (
        "REQUIRE_ALL",
        "FUZZ_CASES",
        "FUZZ_IMAGES",
        "PLAN_CASES",
        "BUILD_IMAGES",
        "SHARED_DIR",
        "SUPERVISED",
    )
    others = ["MASKBIT_API_KEY", *(f"MASKBIT_{name}" for name in tests)]
    assert misspelt([*known, *map(str.lower, known), *others]) == {}


@pytest.mark.parametrize(("command", "lines"), [("gateway", 2), ("worker", 2), ("health", 1)])
def test_what_is_to_run_tells_it_and_a_health_check_does_not(command: str, lines: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "maskbit_cli", command, *(["worker"] if command == "health" else [])],
        env={"PATH": os.environ["PATH"], "MASKBIT_API_KEY_FILE": "keys.toml"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    told = done.stderr.splitlines()
    assert len(told) == lines, done.stderr
    assert (HINT in told[0] and "WARNING" in told[0]) == (lines == 2)


def test_serve_tells_it_once_for_all_its_parts(tmp_path: Path) -> None:
    with serving(tmp_path, "--runtime", "noop", MASKBIT_API_KEY_FILE="keys.toml") as running:
        until(lambda: "Ready after" in running.log.read_text())
    assert running.log.read_text().count("did you mean") == 1
    assert HINT in running.log.read_text()


def test_what_pydantic_says_of_a_wrong_setting_has_no_value_in_it() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(redis_url="redis://:hunter2#x@host/0")
    assert "hunter2" not in str(caught.value)
