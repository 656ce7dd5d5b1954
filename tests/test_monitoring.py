"""Dashboard, recording rules and alerts, held to the running service by a real Prometheus."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from models.bundle import Bundle
from service.bench.running import RunningService, free_port, running_service
from service.jobs.keys import Keys
from tests.documents import ROOT, read
from tests.gateway_answers import png
from tests.gateway_harness import until
from tests.prometheus_server import (
    CONFIG,
    FILES,
    PATIENCE_S,
    RULES,
    Prometheus,
    laid_out,
    program,
    prometheus_running,
    promtool,
)

TESTS = ROOT / "deploy" / "monitoring" / "tests"
VARIABLES = {"$namespace": ".*", "$model": ".*", "$price": "2.00", "$__rate_interval": "5m"}
SCRAPED = {"job", "instance", "namespace"}
"""Labels that Prometheus adds; those of a cluster are absent elsewhere."""
QUESTIONS = ["Are users served?", "Is the queue healthy?", "Are the GPUs busy?", "What does a picture cost?"]


# -- the files -----------------------------------------------------------------------------------------------


@cache
def dashboard() -> Any:
    return json.loads((FILES / "dashboard.json").read_text())


def panels() -> list[dict[str, Any]]:
    """Those that show something."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


@cache
def rules() -> list[dict[str, Any]]:
    files = [yaml.safe_load((FILES / name).read_text()) for name in RULES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


RECORDS = {rule["record"] for rule in rules() if "record" in rule}
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def shown(panel: dict[str, Any]) -> list[str]:
    """The expressions of a panel with its variables filled in."""
    return [filled(target["expr"]) for target in panel["targets"]]


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression.replace('"$1"', ""), expression
    return expression


EXPRESSIONS = {
    **{f"rule {rule.get('record') or rule['alert']}": rule["expr"] for rule in rules()},
    **{f"panel {panel['id']}.{k}": one for panel in panels() for k, one in enumerate(shown(panel))},
}


def nodes(expression: str) -> list[promql_parser.Expr]:
    """Every part of an expression; fails when it cannot be parsed."""
    found: list[promql_parser.Expr] = []
    promql_parser.walk(promql_parser.parse(expression), found.append)
    return found


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    vectors = [
        node.vector_selector if isinstance(node, promql_parser.MatrixSelector) else node
        for node in nodes(expression)
    ]
    return [one for one in vectors if isinstance(one, promql_parser.VectorSelector)]


def grouped(expression: str) -> set[str]:
    """Labels by which an expression groups or joins."""
    labels: set[str] = set()
    for node in nodes(expression):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            labels |= set(node.modifier.labels)
        if isinstance(node, promql_parser.BinaryExpr) and node.modifier:
            labels |= set(node.modifier.matching.labels if node.modifier.matching else ())
            labels |= set(node.modifier.group_labels or ())
    return labels


def made(expression: str) -> set[str]:
    """Labels that `label_replace` makes."""
    calls = [node for node in nodes(expression) if isinstance(node, promql_parser.Call)]
    return {one.args[1].val for one in calls if one.func.name == "label_replace"}


def test_promtool_finds_nothing_wrong_with_configuration_and_rules(tmp_path: Path) -> None:
    promtool("check", "config", laid_out(tmp_path))


@pytest.mark.parametrize("name", RULES)
def test_the_rules_do_what_promtools_tests_say(name: str) -> None:
    promtool("test", "rules", TESTS / name)


def test_every_rule_is_tested_and_every_alert_also_where_it_is_silent() -> None:
    recording, alerts = (yaml.safe_load((TESTS / name).read_text())["tests"] for name in RULES)
    asked = " ".join(one["expr"] for test in recording for one in test["promql_expr_test"])
    assert {record for record in RECORDS if record in asked} == RECORDS
    cases = [case for test in alerts for case in test["alert_rule_test"]]
    for expected in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) is expected} == set(ALERTS)


def test_every_alert_says_what_is_wrong_and_leads_to_a_line_of_the_handbook() -> None:
    text = read("docs/operations.md")
    anchors = {"trouble", *re.findall(r'<a id="([\w-]+)"></a>', text)}
    assert "\n## Trouble\n" in text
    for name, alert in ALERTS.items():
        assert set(alert["annotations"]) == {"summary", "description", "runbook"}, name
        assert alert["labels"]["severity"] in ("critical", "warning"), name
        document, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert document == "docs/operations.md"
        assert anchor in anchors, name


def test_prometheus_finds_rules_and_targets_where_compose_puts_them() -> None:
    config, compose = yaml.safe_load(CONFIG.read_text()), yaml.safe_load(read("compose.yaml"))
    services = compose["services"]
    mounted = dict(volume.split(":")[:2] for volume in services["prometheus"]["volumes"])
    assert mounted["./deploy/monitoring/prometheus.yml"] == "/etc/prometheus/prometheus.yml"
    assert mounted["./deploy/helm/maskbit/files"] == "/etc/prometheus/maskbit"
    assert config["rule_files"] == [f"maskbit/{name}" for name in RULES]
    networks = [one["networks"] for one in services.values() if isinstance(one["networks"], dict)]
    known = {*services, *(name for one in networks for place in one.values() for name in place["aliases"])}
    sources = [source for job in config["scrape_configs"] for source in job["dns_sd_configs"]]
    assert {name for source in sources for name in source["names"]} <= known


# -- the dashboard -------------------------------------------------------------------------------------------


def test_the_dashboard_answers_four_questions_and_can_be_told_what_to_show() -> None:
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert rows == QUESTIONS
    variables = [variable["name"] for variable in dashboard()["templating"]["list"]]
    assert variables == ["datasource", "namespace", "model", "price"]
    assert dashboard()["schemaVersion"] >= 39
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    place = panel["gridPos"]
    columns = range(place["x"], place["x"] + place["w"])
    return {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}


def test_no_panel_lies_over_another_or_beside_the_page() -> None:
    everything = dashboard()["panels"]
    for one, other in combinations(everything, 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])
    assert {x for panel in everything for x, _ in cells(panel)} == set(range(24))


# -- the running service -------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A service after some traffic, what it told at the end, and the Prometheus that saw all of it."""

    prometheus: Prometheus
    """At a moment when it had, so that no answer depends on how long the tests take."""
    labels: dict[str, set[str]]
    """Of each sample on `/metrics`, by its name."""


@pytest.fixture(scope="module")
def watched(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    program("prometheus")
    port, folder = free_port(), tmp_path_factory.mktemp("prometheus")
    settings = {"metrics_port": port, "open_jobs": 3, "threads": 1}
    bundle = str(tiny_bundle.path)
    with running_service("torch", bundle=bundle, durability="off", settings=settings) as service:
        targets = {"maskbit-gateway": service.port, "maskbit-worker": port}
        with prometheus_running(folder, targets) as prometheus:
            until(lambda: prometheus.value("sum(up)") == 2, PATIENCE_S)
            send(service, Keys("tiny", tiny_bundle.revision), prometheus)
            text = "".join(httpx.get(f"http://127.0.0.1:{one}/metrics").text for one in targets.values())
            yield Watched(prometheus.at_rest(len(targets), RECORDS), labels_of(text))


def labels_of(text: str) -> dict[str, set[str]]:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        one.name: {label for other in samples if other.name == one.name for label in other.labels}
        for one in samples
    }


def send(service: RunningService, keys: Keys, prometheus: Prometheus) -> None:
    """Two rounds of every kind; then one job is turned away, two are cancelled, one fails, one expires."""
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=30) as client:
        for rounds in (1, 2):
            send_each_kind(client)
            # A rate is seen between two scrapes only.
            await_rounds(prometheus, rounds)
        with standing_still(service.pids["worker"]):
            broken, *others = [order(client) for _ in range(3)]
            assert client.post("/generate", json={"class_id": 1}).status_code == 503
            assert [client.delete(one).status_code for one in others] == [200, 200]
            with Redis.from_url(service.redis_url) as redis:
                redis.hset(keys.job(broken.removeprefix("/jobs/")), "payload", b"\xc1")
            late = order(client, deadline_ms=1000)
            until(lambda: client.get(late).status_code == 504)
        until(lambda: client.get(broken).status_code == 500)
    ends = {"failed": 1, "cancelled": 2, "expired": 1}
    until(lambda: {outcome: jobs(prometheus, outcome) for outcome in ends} == ends, PATIENCE_S)


def send_each_kind(client: httpx.Client) -> None:
    drawn = client.post("/generate", json={"class_id": 1, "n": 5, "steps": 4})
    read_ = client.post("/tokenize", content=png(), headers={"Content-Type": "image/png"})
    back = client.post("/detokenize", json={"indices": read_.json()["indices"]})
    assert [one.status_code for one in (drawn, read_, back)] == [200, 200, 200]


def await_rounds(prometheus: Prometheus, rounds: int) -> None:
    until(lambda: jobs(prometheus, "done") == 3 * rounds, PATIENCE_S)
    until(lambda: prometheus.value("maskbit_images_total") == 5 * rounds, PATIENCE_S)


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """The worker takes no jobs meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def order(client: httpx.Client, **changes: object) -> str:
    reply = client.post("/jobs", json={"kind": "generate", "class_id": 1, "steps": 2, **changes})
    assert reply.status_code == 202, reply.text
    return reply.headers["location"]


def jobs(prometheus: Prometheus, outcome: str) -> float | None:
    return prometheus.value(f'sum(maskbit_jobs_total{{outcome="{outcome}"}})')


def test_a_real_prometheus_counts_what_was_sent(watched: Watched) -> None:
    ended = {
        (labels["kind"], labels["outcome"]): count
        for labels, count in watched.prometheus.query("maskbit_jobs_total > 0")
    }
    assert ended == {
        ("generate", "done"): 2,
        ("tokenize", "done"): 2,
        ("detokenize", "done"): 2,
        ("generate", "failed"): 1,
        ("generate", "cancelled"): 2,
        ("generate", "expired"): 1,
    }
    shed = {labels["reason"]: count for labels, count in watched.prometheus.query("maskbit_shed_total > 0")}
    assert shed == {"queue_full": 1}
    # Five pictures together, twice: one step without guidance, then three with it, in buckets for a CPU.
    assert watched.prometheus.value("maskbit_network_rows_total") == 2 * (5 + 3 * 10)
    assert watched.prometheus.value("maskbit_bucket_rows_total") == 2 * (6 + 3 * 12)
    steps = watched.prometheus.query("maskbit_step_seconds_count")
    assert {labels["bucket"]: count for labels, count in steps} == {"6": 2, "12": 6}
    assert watched.prometheus.value("maskbit_redis_up") == 1
    assert watched.prometheus.value("maskbit_workers") == 1


def test_the_recording_rules_compute_what_was_sent(watched: Watched) -> None:
    value = watched.prometheus.value
    # One failed, one expired, one turned away; six done. What was cancelled does not count.
    assert value("service:maskbit_unserved:ratio_rate5m") == pytest.approx(3 / 9)
    assert value("instance_model:maskbit_step_fill:ratio_rate5m") == pytest.approx(35 / 42)
    busy = value('sum(maskbit_busy_seconds_total{stage=~"step|decode"})')
    assert busy is not None
    assert value("model:maskbit_picture_busy_seconds:ratio_rate1h") == pytest.approx(busy / 10)
    series = watched.prometheus.query("instance_model:maskbit_model:info")
    assert [(labels["job"], labels["model"], value) for labels, value in series] == [
        ("maskbit-worker", "tiny", 1)
    ]


def test_every_rule_is_evaluated_without_error_and_no_alert_fires(watched: Watched) -> None:
    groups = watched.prometheus.api("rules")["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in found} == RECORDS | set(ALERTS)
    until(lambda: _all_evaluated(watched.prometheus), PATIENCE_S)
    assert watched.prometheus.query('ALERTS{alertstate="firing"}') == []


def _all_evaluated(prometheus: Prometheus) -> bool:
    found = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
    assert [rule for rule in found if rule["health"] == "err"] == []
    return all(rule["health"] == "ok" for rule in found)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_refers_only_to_metrics_and_labels_that_the_service_tells(
    watched: Watched, name: str
) -> None:
    expression = EXPRESSIONS[name]
    recorded: dict[str, set[str]] = {}
    for one in watched.prometheus.api("series", **{"match[]": '{__name__=~".+:maskbit_.+"}'}):
        recorded.setdefault(one["__name__"], set()).update(one)
    known = watched.labels | recorded
    labels = set(SCRAPED)
    for selector in selectors(expression):
        assert selector.name in known, selector.name
        labels |= known[selector.name]
        assert {matcher.name for matcher in selector.matchers.matchers} <= known[selector.name] | SCRAPED
    assert selectors(expression)
    assert grouped(expression) <= labels | made(expression)
    assert set(recorded) == RECORDS


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: str(panel["id"]))
def test_a_panel_shows_numbers_under_names_that_its_legend_knows(
    watched: Watched, panel: dict[str, Any]
) -> None:
    for target, expression in zip(panel["targets"], shown(panel), strict=True):
        samples = watched.prometheus.query(expression)
        assert samples, (panel["title"], expression)
        assert not all(math.isnan(value) for _, value in samples), (panel["title"], expression)
        named = set(re.findall(r"{{(\w+)}}", target["legendFormat"])) - {"namespace"}
        assert all(named <= set(labels) for labels, _ in samples), (panel["title"], samples)
