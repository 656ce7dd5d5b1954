import subprocess
import sys
from collections.abc import Iterator

import pytest

from models.errors import ConfigError
from service.bench.abuse import attacks_named, bench_abuse
from service.bench.attacker import ATTACKS
from tests.gateway_harness import FakeWorker, Gateway, until


@pytest.fixture
def attack(request: pytest.FixtureRequest, gateway: Gateway) -> Iterator[str]:
    """An attack on the gateway for one test."""
    command = [sys.executable, "-m", "service.bench.attacker", request.param, str(gateway.port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield request.param
    finally:
        process.communicate(timeout=20)
    assert process.returncode == 0
    until(lambda: len(gateway.server.server_state.connections) <= 1)


@pytest.mark.parametrize("attack", ATTACKS, indirect=True)
def test_under_each_attack_a_good_client_is_served(gateway: Gateway, worker: FakeWorker, attack: str) -> None:
    connections = gateway.server.server_state.connections
    # Huge headers are refused so soon that few of their connections are there at the same time.
    at_once = 1 if attack == "huge-headers" else ATTACKS[attack].sessions // 3
    until(lambda: len(connections) >= at_once)
    for seed in range(20):
        reply = gateway.client.post("/generate", json={"class_id": 1, "seed": seed})
        assert reply.json()["images"][0]["seed"] == seed


def test_the_report_puts_each_attack_beside_the_time_without_it() -> None:
    lines = list(bench_abuse(attacks=["idle-sockets"], seconds=0.3, rounds=1))
    assert lines[2].split()[0] == "idle-sockets"
    assert len([word for word in lines[2].split() if word == "ms"]) == 4
    assert "at most 2 is wanted" in lines[3]


def test_an_unknown_attack_is_one_clear_error() -> None:
    assert attacks_named(None) == list(ATTACKS)
    assert attacks_named("idle-sockets, huge-headers") == ["idle-sockets", "huge-headers"]
    with pytest.raises(ConfigError, match="no attack 'ddos'; there are slow-headers"):
        attacks_named("ddos")
