"""The connections that the threads of a worker have."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from service.jobs.keys import Keys
from service.jobs.redis_link import ThreadLink

pytest_plugins = ["tests.redis_fixtures"]


@pytest.fixture
def link(redis_url: str, keys: Keys) -> Iterator[ThreadLink]:
    link = ThreadLink(redis_url, keys.shared, "test-worker")
    yield link
    link.close()


def mine(raw: Redis) -> list[str]:
    """Ids of the link's connections."""
    return [str(client["id"]) for client in raw.client_list() if client["name"] == "test-worker"]


def test_each_thread_has_one_connection_under_the_name_of_the_worker(link: ThreadLink, raw: Redis) -> None:
    for _ in range(3):
        assert link.call("PING") == b"PONG"
    assert len(mine(raw)) == 1
    thread = threading.Thread(target=link.call, args=("PING",))
    thread.start()
    thread.join()
    assert len(mine(raw)) == 2


def test_several_runs_of_a_script_are_answered_in_order(link: ThreadLink, raw: Redis, keys: Keys) -> None:
    for name in ("a", "b"):
        raw.set(f"idem:{name}", name)
        raw.hset(keys.job(name), "fingerprint", f"of {name}")
    answers = link.run_all("first", [("idem:a",), ("idem:none",), ("idem:b",)])
    assert answers == [[b"a", b"of a"], [], [b"b", b"of b"]]


def test_an_error_among_several_runs_leaves_no_answer_behind(link: ThreadLink) -> None:
    with pytest.raises(ResponseError):
        link.run_all("first", [("key",), (), ("key",)])
    assert link.call("ECHO", "mine") == b"mine"


def test_a_redis_that_forgot_the_scripts_gets_them_again(link: ThreadLink, raw: Redis) -> None:
    for _ in range(2):
        assert link.run_all("first", [("key",), ("key",)]) == [[], []]
        raw.script_flush()


def test_a_connection_that_was_closed_while_idle_is_replaced_unnoticed(link: ThreadLink, raw: Redis) -> None:
    assert link.call("PING") == b"PONG"
    for number in mine(raw):
        raw.client_kill_filter(_id=number)
    assert link.call("ECHO", "still there") == b"still there"
