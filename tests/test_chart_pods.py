"""What the Helm chart's pods run, run here: gateway, worker, `helm test`, downloads, as rendered."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from models.bundle import BUNDLED, Bundle
from service.bench.running import free_port
from service.gateway.api_keys import digest_of, new_key
from service.jobs.redis_link import connect
from service.jobs.redis_server import RedisServer
from tests.chart_fixtures import CHART, Manifest, by_kind, render
from tests.documents import blocks
from tests.gateway_harness import until
from tests.service_fixtures import start, stop

REVISION = "v1"
REF = "someone/tiny"


def pod_of(manifests: list[Manifest], name: str) -> Manifest:
    """The pod of a Deployment or Job."""
    kinds = ("Deployment", "Job", "Pod")
    [found] = [one for one in manifests if one["kind"] in kinds and one["metadata"]["name"].startswith(name)]
    spec: Manifest = found["spec"]
    return spec if found["kind"] == "Pod" else dict(spec["template"]["spec"])


def environment(container: Manifest, **given: str) -> dict[str, str]:
    """Its variables, those of Secrets left to `given`, which goes before all."""
    own = {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}
    return own | given


def run(container: Manifest, *arguments: str, **given: str) -> subprocess.CompletedProcess[str]:
    """What a container runs, with other arguments."""
    command = [*container["command"], *(arguments or container.get("args", []))]
    command[:1] = {"maskbit": [sys.executable, "-m", "maskbit_cli"], "python3": [sys.executable]}[command[0]]
    env = {**os.environ, **environment(container, **given)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)


# -- gateway, worker, helm test ------------------------------------------------------------------------------


def acl_rules() -> list[str]:
    """The rights of the Redis user, as the README has them."""
    [line] = [
        block for block in blocks((CHART / "README.md").read_text(), "text") if block.startswith("user ")
    ]
    name, *rules = line.split()[1:]
    assert name == "maskbit"
    return [rule.replace(">PASSWORD", ">secret") for rule in rules]


@contextmanager
def release(folder: Path, redis: RedisServer, key: str) -> Iterator[int]:
    """Gateway and worker of a release as rendered, but on this machine; yields the gateway's port."""
    values = {
        "redis": {
            "mode": "external",
            "password": {"secret": "redis"},
            "external": {"host": "redis", "username": "maskbit"},
        },
        "apiKeys": {"secret": "keys"},
        "test": {"apiKey": {"secret": "key"}},
        "worker": {"settings": {"threads": 1}},
    }
    manifests = render(values)
    (folder / "keys.toml").write_text(f'[keys.test]\nsha256 = "{digest_of(key)}"\n')
    with Redis.from_url(redis.url) as client:
        client.execute_command("ACL", "SETUSER", "maskbit", *acl_rules())
        client.execute_command("ACL", "SETUSER", "default", "off")
    ports = {"gateway": free_port(), "worker": free_port()}
    here = {
        "MASKBIT_HOST": "127.0.0.1",
        "MASKBIT_REDIS_URL": redis.url.replace("unix://", "unix://maskbit@") + "?password=secret",
        "MASKBIT_PORT": str(ports["gateway"]),
        "MASKBIT_METRICS_PORT": str(ports["worker"]),
        "MASKBIT_API_KEYS_FILE": str(folder / "keys.toml"),
    }
    processes = []
    for name in ("worker", "gateway"):
        [container] = pod_of(manifests, f"demo-maskbit-{name}")["containers"]
        kept = {key: value for key, value in here.items() if key in environment(container)}
        processes.append(start(name, log=folder / f"{name}.log", **environment(container, **kept)))
    try:
        for name in ("worker", "gateway"):
            [container] = pod_of(manifests, f"demo-maskbit-{name}")["containers"]
            for probe in ("livenessProbe", "startupProbe", "readinessProbe"):
                url = f"http://127.0.0.1:{ports[name]}{container[probe]['httpGet']['path']}"
                until(lambda url=url: answers(url), 60)  # type: ignore[misc]
        yield ports["gateway"]
    finally:
        codes = [stop(process) for process in processes]
    assert codes == [0, 0], (folder / "worker.log").read_text() + (folder / "gateway.log").read_text()
    with Redis.from_url(here["MASKBIT_REDIS_URL"]) as client:
        client.execute_command("PING")


def answers(url: str) -> bool:
    """Whether a probe passes."""
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test's own."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


def test_helm_test_passes_on_a_release_with_keys_and_a_redis_user_of_few_rights(
    tmp_path: Path, embedded: RedisServer
) -> None:
    key = new_key()
    [smoke] = pod_of(render({"test": {"timeoutSeconds": 60}}), "demo-maskbit-test")["containers"]
    with release(tmp_path, embedded, key) as port:
        url = f"http://127.0.0.1:{port}"
        assert smoke["args"] == ["http://demo-maskbit-gateway:80", "60", "fruit"]
        passed = run(smoke, url, "60", "fruit", MASKBIT_API_KEY=key)
        assert passed.returncode == 0, passed.stderr
        assert passed.stdout.startswith("fruit@")
        wrong = run(smoke, url, "60", "fruit", MASKBIT_API_KEY="wrong")
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert "the API key is not known" in wrong.stderr
    log = (tmp_path / "worker.log").read_text() + (tmp_path / "gateway.log").read_text()
    assert "NOPERM" not in log
    assert "permission" not in log
    assert all(json.loads(line)["level"] != "error" for line in log.splitlines())


def test_helm_test_fails_in_one_line_where_nobody_answers() -> None:
    [smoke] = pod_of(render(), "demo-maskbit-test")["containers"]
    failed = run(smoke, f"http://127.0.0.1:{free_port()}", "0", "fruit")
    assert failed.returncode == 1
    assert len(failed.stderr.splitlines()) == 1
    assert "refused" in failed.stderr


def test_helm_test_tells_in_one_line_of_an_answer_that_is_none_of_ours() -> None:
    [smoke] = pod_of(render(), "demo-maskbit-test")["containers"]
    answers = {
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{": "IncompleteRead",
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>": "JSONDecodeError",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]": "TypeError",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nno\nroute": "no route",
        b"nonsense\r\n\r\n": "BadStatusLine",
    }
    for answer, word in answers.items():
        with saying(answer) as port:
            failed = run(smoke, f"http://127.0.0.1:{port}", "0", "fruit")
        assert failed.returncode == 1
        assert len(failed.stderr.splitlines()) == 1, failed.stderr
        assert word in failed.stderr


@contextmanager
def saying(answer: bytes) -> Iterator[int]:
    """A server that says `answer` to whoever comes first; yields its port."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


# -- a password that changes ---------------------------------------------------------------------------------


def test_while_a_password_changes_both_are_right(redis_executable: str) -> None:
    [command] = [
        line
        for block in blocks((CHART / "README.md").read_text(), "sh")
        for line in block.splitlines()
        if "acl" in line
    ]
    arguments = shlex.split(command.partition("redis-cli ")[2].replace("$new", "new"))
    port = free_port()
    place = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--requirepass", "old"]
    with subprocess.Popen([redis_executable, *place], stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: listens(port))
            with Redis(port=port, password="old") as redis:
                redis.execute_command(*arguments)
                for password in ("old", "new"):
                    with connect(f"redis://:{password}@127.0.0.1:{port}/0") as client:
                        assert client.ping()
        finally:
            process.terminate()


# -- a Redis with TLS ----------------------------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with ca.crt, tls.crt and tls.key of localhost, which sign themselves."""
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    files = ("-keyout", str(tmp_path / "tls.key"), "-out", str(tmp_path / "tls.crt"))
    subprocess.run(["openssl", "req", "-x509", *key, *names, *files], capture_output=True, check=True)
    (tmp_path / "ca.crt").write_bytes((tmp_path / "tls.crt").read_bytes())
    return tmp_path


@contextmanager
def redis_with_tls(folder: Path) -> Iterator[int]:
    """A redis-server that wants a client's certificate and the user maskbit; yields its port."""
    executable, port = shutil.which("redis-server"), free_port()
    if executable is None:
        pytest.skip("there is no redis-server on PATH, and the embedded one has no TLS")
    files = {"cert": "tls.crt", "key": "tls.key", "ca-cert": "ca.crt"}
    tls = [part for name, file in files.items() for part in (f"--tls-{name}-file", str(folder / file))]
    place = ["--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    users = ["--user", "maskbit", *acl_rules(), "--user", "default", "off"]
    with subprocess.Popen([executable, *place, *tls, *users], stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: listens(port))
            yield port
        finally:
            process.terminate()


def listens(port: int) -> bool:
    """Whether somebody takes connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_rendered_url_opens_a_redis_with_tls_certificates_and_a_user(certificates: Path) -> None:
    with redis_with_tls(certificates) as port:
        tls = {"enabled": True, "caSecret": "ca", "certSecret": "tls"}
        external = {"host": "localhost", "port": port, "username": "maskbit", "tls": tls}
        redis = {"mode": "external", "password": {"secret": "password"}, "external": external}
        [container] = pod_of(render({"redis": redis}), "demo-maskbit-gateway")["containers"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        url = environment(container)["MASKBIT_REDIS_URL"].replace("$(REDIS_PASSWORD)", "secret")
        for name in ("redis-ca", "redis-tls"):
            assert f"{mounted[name]}/" in url
            url = url.replace(mounted[name], str(certificates))
        with connect(url) as client:
            assert client.ping()
            with pytest.raises(ResponseError, match="no permissions"):
                client.flushall()
        for wrong in (url.replace("secret", "other"), url.partition("&ssl_certfile")[0]):
            with connect(wrong) as client, pytest.raises((RedisError, OSError)):
                client.ping()


# -- bundles of the Hub --------------------------------------------------------------------------------------


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """What a download needs of the Hub, for one repository; yields its URL and a list of what is asked."""
    commit = hashlib.sha1(REF.encode()).hexdigest()
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path} {self.headers.get('Authorization', '')}")
            path = self.path.partition("?")[0]
            siblings = [{"rfilename": name} for name in files]
            tree = [{"type": "file", "path": name, "size": len(files[name]), "oid": "0"} for name in files]
            if path == f"/api/models/{REF}/tree/{commit}":
                self.answer(json.dumps(tree).encode(), {"Content-Type": "application/json"})
            elif path == f"/api/models/{REF}/revision/{REVISION}":
                body = json.dumps({"id": REF, "sha": commit, "siblings": siblings}).encode()
                self.answer(body, {"Content-Type": "application/json"})
            elif (name := path.rpartition("/")[2]) in files and f"/{REF}/resolve/" in path:
                tag = hashlib.sha1(files[name]).hexdigest()
                self.answer(files[name], {"ETag": f'"{tag}"', "X-Repo-Commit": commit})
            else:
                self.send_error(404)

        def answer(self, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


def hub_values(**fields: Any) -> dict[str, Any]:
    """Values of a release with one model of the Hub."""
    bundle = {"source": "hub", "ref": REF, "revision": REVISION}
    return {
        "models": [{"name": "tiny", "bundle": bundle}],
        "hub": {"token": {"secret": "t"}, "cache": {"enabled": True}, **fields},
    }


def test_what_an_init_container_downloads_a_worker_and_a_gateway_find_without_the_hub(
    tmp_path: Path, tiny_bundle: Bundle
) -> None:
    home = {"HF_HOME": str(tmp_path / "hub"), "HOME": str(tmp_path), "HF_TOKEN": "token"}
    manifests = render(hub_values())
    worker = pod_of(manifests, "demo-maskbit-worker-tiny")
    [download] = worker["initContainers"]
    offline = environment(worker["containers"][0])
    with hub(tiny_bundle.path) as (url, asked):
        downloaded = run(download, HF_ENDPOINT=url, **home)
        assert downloaded.returncode == 0, downloaded.stderr
        assert any("Bearer token" in one for one in asked)
        [fetch] = pod_of(manifests, "demo-maskbit-gateway")["initContainers"]
        assert fetch["args"] == ["/manifests", f"tiny={REF}@{REVISION}"]
        before, own = len(asked), {**home, "HF_HOME": str(tmp_path / "own")}
        fetched = run(fetch, str(tmp_path), fetch["args"][1], HF_ENDPOINT=url, **own)
        assert fetched.returncode == 0, fetched.stderr
        assert not [one for one in asked[before:] if "safetensors" in one]
    assert (tmp_path / "tiny/bundle.json").read_text() == tiny_bundle.text
    assert offline["HF_HUB_OFFLINE"] == "1"
    kept = {path: path.stat().st_mtime_ns for path in Path(home["HF_HOME"]).rglob("*")}
    again = run(download, **home | {"HF_HUB_OFFLINE": "1"})
    assert again.returncode == 0, again.stderr
    # The worker's volume is read only.
    assert {path: path.stat().st_mtime_ns for path in Path(home["HF_HOME"]).rglob("*")} == kept
    assert offline["MASKBIT_BUNDLE"] == download["command"][-1] == f"hf://{REF}@{REVISION}"


def test_a_bundle_that_is_not_there_yet_is_told_in_one_line(tmp_path: Path) -> None:
    manifests = render(hub_values(download="job"))
    home = {"HF_HOME": str(tmp_path / "hub"), "HOME": str(tmp_path)}
    [waiting] = pod_of(manifests, "demo-maskbit-worker-tiny")["initContainers"]
    [gateway] = pod_of(manifests, "demo-maskbit-gateway")["initContainers"]
    for container, arguments in ((waiting, ()), (gateway, (str(tmp_path), f"tiny={REF}@{REVISION}"))):
        assert environment(container)["HF_HUB_OFFLINE"] == "1"
        failed = run(container, *arguments, **home)
        assert failed.returncode != 0
        assert len(failed.stderr.splitlines()) == 1
        assert f"hf://{REF}@{REVISION}" in failed.stderr


def test_a_gateway_needs_nothing_of_a_bundle_but_its_manifest(tmp_path: Path) -> None:
    from models.bundle import open_bundles

    (tmp_path / "bundle.json").write_bytes((BUNDLED / "fruit/bundle.json").read_bytes())
    assert [one.manifest.name for one in open_bundles([str(tmp_path)])] == ["fruit"]


def test_jobs_and_init_containers_download_the_same() -> None:
    pod, job = render(hub_values()), render(hub_values(download="job"))
    [init] = pod_of(pod, "demo-maskbit-worker-tiny")["initContainers"]
    [download] = pod_of(job, "demo-maskbit-hub")["containers"]
    assert download["command"] == init["command"]
    assert download["env"] == init["env"]
    assert not by_kind(pod, "Job")
