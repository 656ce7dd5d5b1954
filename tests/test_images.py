"""The Dockerfiles and compose.yaml as they are written; tests/test_images_built.py builds and runs them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from service.bench.running import free_port
from service.jobs.redis_server import SAFE_SETTINGS
from service.settings import Settings
from tests.documents import ROOT
from tests.gateway_harness import until
from tests.image_builder import dockerfile, pins, requirements_of

IMAGES = ("gateway", "worker-cpu", "worker-gpu")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = re.compile(r"docker\.io/[a-z/]+:[\w.]+(-[\w.]+)*@sha256:[0-9a-f]{64}")
# What this machine lacks: the CUDA builds, and what only they need.
ONLY_ON_GPUS = {"onnxruntime-gpu", "tensorrt"}


def tool(name: str) -> str:
    """A program that a package of the extra `dev` installs."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = shutil.which(name, path=path)
    assert found is not None, name
    return found


def instructions(image: str) -> list[tuple[str, str]]:
    """Name and value of each instruction, comments left out."""
    parser = DockerfileParser(str(dockerfile(image)))
    found = [(one["instruction"], one["value"]) for one in parser.structure]
    return [one for one in found if one[0] != "COMMENT"]


def last_stage(image: str) -> list[tuple[str, str]]:
    everything = instructions(image)
    start = max(at for at, (name, _) in enumerate(everything) if name == "FROM")
    return everything[start:]


def only(stage: list[tuple[str, str]], name: str) -> str:
    [value] = [value for one, value in stage if one == name]
    return value


def argument(stage: list[tuple[str, str]], name: str) -> str:
    """The default of a build argument, "" without one."""
    [value] = [value for one, value in stage if one == "ARG" and value.partition("=")[0] == name]
    return value.partition("=")[2]


# -- Dockerfiles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_finds_nothing_at_all(image: str) -> None:
    done = subprocess.run(
        [tool("hadolint"), "--no-color", "--failure-threshold", "style", dockerfile(image)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "hadolint ignore" not in dockerfile(image).read_text()


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_starts_from_one_base_that_tag_and_digest_name(image: str) -> None:
    everything = instructions(image)
    assert PINNED.fullmatch(argument(everything[:1], "PYTHON_IMAGE"))
    assert everything[0] == instructions("gateway")[0]
    stages = [value.partition(" AS ")[::2] for name, value in everything if name == "FROM"]
    base = "${PYTHON_IMAGE}"
    assert stages == [(base, "dependencies"), ("dependencies", "package"), (base, "")]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_without_root_and_its_health_is_checked(image: str) -> None:
    stage, part = last_stage(image), image.partition("-")[0]
    assert only(stage, "USER") == "10001:10001"
    assert json.loads(only(stage, "ENTRYPOINT")) == ["maskbit"]
    assert json.loads(only(stage, "CMD")) == [part]
    assert f'CMD ["maskbit", "health", "{part}"]' in only(stage, "HEALTHCHECK")
    after_user = [name for name, _ in stage[stage.index(("USER", "10001:10001")) :]]
    assert not {"RUN", "COPY", "ADD"} & set(after_user)


@pytest.mark.parametrize("image", IMAGES)
def test_the_labels_of_an_image_are_those_of_the_project(image: str) -> None:
    stage = last_stage(image)
    labels = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', only(stage, "LABEL")))
    assert labels.pop("description")
    assert labels == {
        "base.name": "${PYTHON_IMAGE}",
        "licenses": PROJECT["license"],
        "revision": "${REVISION}",
        "title": f"maskbit-{image}",
        "version": "${VERSION}",
    }
    assert argument(stage, "VERSION") == PROJECT["version"]
    assert any('test "$(maskbit --version)" = "maskbit ${VERSION}"' in value for _, value in stage)


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_is_installed_in_the_last_stage_and_all_of_it_comes_from_the_others(image: str) -> None:
    for name, value in last_stage(image):
        assert name != "ADD"
        assert name != "COPY" or value.startswith("--from=")
        assert name != "RUN" or not re.search(r"\b(pip|apt-get|curl|wget)\b", value)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_sets_only_settings_that_exist(image: str) -> None:
    variables = set(re.findall(r"\b(MASKBIT_\w+)=", dockerfile(image).read_text()))
    assert variables <= {f"MASKBIT_{name.upper()}" for name in Settings.model_fields}
    assert "MASKBIT_HOST" in variables


# -- packages ------------------------------------------------------------------------------------------------


def wanted(image: str) -> list[Requirement]:
    return [Requirement(line) for line in requirements_of(image)]


def closure(requirements: list[Requirement]) -> set[str]:
    """All packages that come with `requirements`, by what is installed here."""
    found: set[tuple[str, str]] = set()
    queue = [(canonicalize_name(one.name), extra) for one in requirements for extra in ("", *one.extras)]
    while queue:
        name, extra = queue.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        if name in ONLY_ON_GPUS:
            continue
        for text in distribution(name).requires or ():
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                queue += [(canonicalize_name(one.name), more) for more in ("", *one.extras)]
    return {name for name, _ in found}


@pytest.mark.parametrize("image", IMAGES)
def test_every_package_of_an_image_has_its_version_pinned(image: str) -> None:
    files = ("constraints.txt", "deploy/docker/constraints-gpu.txt")[: 1 + (image == "worker-gpu")]
    assert {*closure(wanted(image)), "setuptools"} <= set(pins(*files))
    text = dockerfile(image).read_text()
    assert f"{' '.join(f'/src/{Path(file).name}' for file in files)}" in text


def test_the_gateway_has_no_package_that_computes() -> None:
    assert not closure(wanted("gateway")) & {"torch", "safetensors", "onnxruntime", "tritonclient", "sympy"}


def test_the_pins_of_the_gpu_image_contradict_no_other() -> None:
    both, gpu = pins("constraints.txt"), pins("deploy/docker/constraints-gpu.txt")
    assert {name: both[name] for name in both.keys() & gpu.keys()} == {
        name: gpu[name] for name in both.keys() & gpu.keys()
    }


def test_an_extra_of_extras_is_spelled_out() -> None:
    names = {one.name for one in wanted("worker-gpu")}
    assert {"torch", "tensorrt", "onnxruntime-gpu", "numpy"} <= names
    assert "onnxruntime" not in names
    assert "maskbit-serve" not in names


# -- what a build sees ---------------------------------------------------------------------------------------


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a path through: the last rule that fits it or a folder above decides."""
    kept, parts = True, path.split("/")
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = rule.lstrip("!")
        prefixes = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
        if not rule or rule.startswith("#"):
            continue
        if any(fnmatch(one, pattern) or fnmatch(f"./{one}", pattern) for one in prefixes):
            kept = rule.startswith("!")
    return kept


def sources(image: str) -> Iterator[str]:
    """Paths that the Dockerfile copies from the repository."""
    for name, value in instructions(image):
        if name == "COPY" and not value.startswith("--from="):
            yield from value.split()[:-1]


@pytest.mark.parametrize("image", IMAGES)
def test_what_a_dockerfile_copies_is_there_and_in_the_context(image: str) -> None:
    for path in sources(image):
        assert (ROOT / path).exists(), path
        assert in_context(path), path


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".env",
        ".venv/bin/python",
        "bundles/mine/generator.safetensors",
        "compose.yaml",
        "deploy/helm/maskbit/values.yaml",
        "docs/page.png",
        "keys.toml",
        "service/__pycache__/cli.cpython-311.pyc",
        "tests/conftest.py",
    ],
)
def test_neither_secrets_nor_anything_else_gets_into_a_build(path: str) -> None:
    assert not in_context(path)


# -- compose.yaml --------------------------------------------------------------------------------------------


def compose(**variables: str) -> dict[str, Any]:
    """compose.yaml with its defaults, or `variables`, put in."""
    text = re.sub(
        r"\$\{(\w+):-([^}]*)\}",
        lambda match: variables.get(match[1], match[2]),
        (ROOT / "compose.yaml").read_text(),
    )
    assert "$" not in text
    found: dict[str, Any] = yaml.safe_load(text)
    return found


SERVICES: Mapping[str, Any] = compose()["services"]


def test_compose_yaml_is_as_the_specification_wants_it() -> None:
    project = compose()
    for service in project["services"].values():
        # Compose takes whole numbers, and a tag beside a digest; the library does not.
        service["cpus"] = float(service["cpus"])
        service["image"] = re.sub(r":[^@]+@", "@", service["image"])
    read = PyCompose.from_json(json.dumps(project))
    read.validate()
    assert set(read.service_names()) == set(SERVICES)


def test_a_linter_for_compose_finds_only_that_our_images_have_no_digest_yet() -> None:
    done = subprocess.run(
        [tool("compose-lint"), "check", "--format", "json", "--fail-on", "low", "compose.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    findings = {(one["rule_id"], one["service"]) for one in json.loads(done.stdout)["findings"]}
    assert findings == {("CL-0019", image) for image in IMAGES}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_confined_bounded_and_watched(service: str) -> None:
    one = SERVICES[service]
    assert one["read_only"] is True
    assert one["cap_drop"] == ["ALL"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert all(one[limit] for limit in ("cpus", "mem_limit", "pids_limit", "tmpfs", "networks"))
    assert one["restart"] == "unless-stopped"
    assert "privileged" not in one
    # Ours have it, and a user who is not root, from their images.
    assert "build" in one or ("healthcheck" in one and one["user"] not in ("root", "0"))


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_runs_what_is_pinned_or_built_here(service: str) -> None:
    one = SERVICES[service]
    if "build" not in one:
        assert PINNED.fullmatch(one["image"])
        return
    assert one["image"] == f"maskbit-{service}:{PROJECT['version']}"
    assert ROOT / one["build"]["dockerfile"] == dockerfile(service)
    known = {value.partition("=")[0] for name, value in instructions(service) if name == "ARG"}
    assert set(one["build"]["args"]) <= known


def test_a_profile_chooses_the_worker_and_everything_else_always_runs() -> None:
    assert {name: one["profiles"] for name, one in SERVICES.items() if "profiles" in one} == {
        "worker-cpu": ["cpu"],
        "worker-gpu": ["gpu"],
    }
    assert set(SERVICES) == {*IMAGES, "redis", "prometheus", "grafana"}
    [device] = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def redis_script() -> str:
    """What the shell runs before Redis takes its place."""
    shell, flag, script = SERVICES["redis"]["command"]
    assert (shell, flag) == ("sh", "-c")
    return str(script)


def test_redis_keeps_every_accepted_job() -> None:
    words = shlex.split(redis_script().partition("exec redis-server ")[2])
    options = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    assert {**SAFE_SETTINGS, "save": ""}.items() <= options.items()
    assert "redis:/data" in SERVICES["redis"]["volumes"]


@contextmanager
def redis_of_compose(folder: Path) -> Iterator[Redis]:
    """Redis by the command of compose.yaml, with a folder and a port of its own, until it is killed."""
    if shutil.which("redis-cli") is None:
        if os.environ.get("MASKBIT_REQUIRE_ALL") == "1":
            pytest.fail("there is no redis-cli on PATH, and MASKBIT_REQUIRE_ALL=1 demands it")
        pytest.skip("there is no redis-cli on PATH")
    port = free_port()
    script = redis_script().replace("redis-cli", f"redis-cli -p {port}")
    script = script.replace("redis-server", f"redis-server --port {port} --dir {folder}")
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        with Redis(port=port) as redis:
            until(lambda: _answers(redis))
            yield redis
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(redis: Redis) -> bool:
    with suppress(RedisConnectionError):
        return bool(redis.ping())
    return False


def test_what_follows_a_half_written_transaction_is_not_lost_with_it_under_compose(tmp_path: Path) -> None:
    with redis_of_compose(tmp_path) as redis:
        redis.eval("redis.call('SET', 'half', 1) return redis.call('SET', 'done', 1)", 0)
        until(lambda: redis.info("persistence")["aof_rewrites"])
        until(lambda: not redis.info("persistence")["aof_rewrite_in_progress"])
        redis.eval("redis.call('SET', 'half', 2) return redis.call('SET', 'done', 2)", 0)
    [log] = [path for path in tmp_path.rglob("appendonly*aof") if b"half" in path.read_bytes()]
    os.truncate(log, log.stat().st_size - 4)  # the EXEC is damaged
    with redis_of_compose(tmp_path) as redis:
        redis.set("after", 1)
        until(lambda: redis.info("persistence")["aof_rewrites"])
        until(lambda: not redis.info("persistence")["aof_rewrite_in_progress"])
    with redis_of_compose(tmp_path) as redis:
        assert redis.mget("half", "done", "after") == [b"1", b"1", b"1"]


def test_only_this_machine_reaches_the_ports_and_workers_reach_nobody_but_redis() -> None:
    published = [port for one in SERVICES.values() for port in one.get("ports", ())]
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert compose()["networks"]["inside"] == {"internal": True}
    for name in ("worker-cpu", "worker-gpu", "redis"):
        assert list(SERVICES[name]["networks"]) == ["inside"]


@pytest.mark.parametrize("service", IMAGES)
def test_a_service_is_given_settings_that_exist_and_are_right(service: str) -> None:
    given = {name: value for name, value in SERVICES[service]["environment"].items() if value is not None}
    ours = {name.removeprefix("MASKBIT_").lower(): value for name, value in given.items()}
    settings = Settings(**ours)
    assert settings.redis_url == "redis://redis:6379/0"
    grace_s = int(SERVICES[service]["stop_grace_period"].removesuffix("s"))
    assert grace_s >= settings.drain_s + 10


def test_what_is_mounted_from_the_project_is_there_and_read_only() -> None:
    for one in SERVICES.values():
        for source, _, mode in (volume.split(":") for volume in one.get("volumes", ()) if volume[0] == "."):
            assert mode == "ro"
            assert source == "./bundles" or (ROOT / source).exists(), source


def test_prometheus_and_grafana_find_their_files_where_compose_puts_them() -> None:
    config = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text())
    files = ROOT / "deploy/helm/maskbit/files"
    assert config["rule_files"]
    assert all((files / rule.removeprefix("maskbit/")).is_file() for rule in config["rule_files"])
    aliases = {alias for one in SERVICES.values() for alias in _aliases(one)} | set(SERVICES)
    for job in config["scrape_configs"]:
        for lookup in job["dns_sd_configs"]:
            assert set(lookup["names"]) <= aliases
    provisioning = ROOT / "deploy/monitoring/grafana/provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards/maskbit.yaml").read_text())["providers"]
    assert any(f":{provider['options']['path']}/" in volume for volume in SERVICES["grafana"]["volumes"])
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


def _aliases(service: Mapping[str, Any]) -> list[str]:
    networks = service["networks"]
    return [] if isinstance(networks, list) else [a for one in networks.values() for a in one["aliases"]]
