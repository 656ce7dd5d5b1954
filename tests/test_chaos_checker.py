"""Each invariant, violated by a journal made up for it: the checker must flag that one and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.chaos.checker import RULES, check
from service.chaos.expected import right_digest
from service.chaos.http_client import TIMEOUT_S
from service.chaos.journal import (
    CANCELLED,
    DONE,
    EXPIRED,
    FAILED,
    UNKNOWN,
    Accepted,
    Answered,
    Asked,
    Bounds,
    CancelSaid,
    Event,
    Fault,
    GaveUp,
    Journal,
    Life,
    Loss,
    Memory,
    Missing,
    Opened,
    Recorded,
    Rest,
    Stolen,
    Turned,
    read_journal,
)

MIB = 1 << 20
BOUNDS = Bounds(0.0, open_jobs=4, lease_s=1.0, overload=False, redis_bytes=MIB)
RIGHT = right_digest("poll", 7, 2)


def asked(n: int = 1, *, seed: int = 7, deadline_ms: int = 60_000, **more: object) -> Asked:
    fields = {"action": "poll", "key": "", "poison": False, **more}
    return Asked(1.0, n, seed=seed, steps=2, deadline_ms=deadline_ms, **fields)  # type: ignore[arg-type]


def accepted(t: float = 2.0, *, n: int = 1, job: str = "a" * 32, gateway: str = "gateway-0") -> Accepted:
    return Accepted(t, n, job, t - 0.1, gateway, kept=True)


def answered(t: float, state: str = DONE, *, n: int = 1, job: str = "a" * 32, **more: str) -> Answered:
    digest = more.pop("digest", RIGHT if state == DONE else "")
    return Answered(t, n, job, t - 0.5, state, digest=digest, **more)


def recorded(t: float, state: str = DONE, *, job: str = "a" * 32, digest: str = RIGHT) -> Recorded:
    return Recorded(t, job, state, "", digest if state == DONE else "")


def rest(**left: int) -> Rest:
    fields = {"open": 0, "entries": 0, "pending": 0, "tenant_jobs": 0, "released": 0, "kept": 1}
    return Rest(90.0, **{**fields, "redis_bytes": 2 * MIB, **left})


GOOD: list[Event] = [BOUNDS, asked(), accepted(), recorded(3.0), answered(3.1), Opened(2.5, 1), rest()]


def broken(*events: Event) -> set[str]:
    """The rules that a journal violates; every one starts like a good run."""
    return {name for name, lines in check([BOUNDS, *events]).found.items() if lines}


def test_a_good_run_violates_nothing() -> None:
    verdict = check(GOOD)

    assert verdict.holds
    assert set(verdict.found) == set(RULES)
    assert not verdict.excused


VIOLATIONS: dict[str, list[Event]] = {
    "lost": [asked(), accepted()],
    "stuck": [asked(), accepted(), answered(3.1), recorded(3.0), GaveUp(80.0, 1, "a" * 32)],
    "doubled": [asked(), accepted(), recorded(3.0), recorded(4.0), answered(4.1)],
    "changed": [asked(), accepted(), answered(3.1, digest="wrong")],
    "mismatched": [asked(action="cancel"), accepted(), recorded(3.0), answered(3.1, CANCELLED)],
    "over_limit": [Opened(2.0, 5)],
    "left_over": [rest(pending=1)],
    "falsely_poisoned": [asked(), accepted(), answered(9.0, FAILED, code="poisoned")],
    "expired_early": [asked(deadline_ms=500), accepted(), answered(2.3, EXPIRED, code="deadline_passed")],
    "groundless": [asked(), accepted(), recorded(3.0, FAILED), answered(3.1, FAILED, code="job_failed")],
    "revived": [asked(), accepted(), CancelSaid(2.5, 1, "a" * 32), recorded(3.0), answered(3.1)],
    "ids_differ": [
        asked(key="k"),
        *(accepted(2.0 + k, job=str(k) * 32) for k in range(2)),
        *(answered(4.0, job=str(k) * 32) for k in range(2)),
    ],
    "grown": [Memory(float(t), "worker-0", 7, (100 + 2 * t) * MIB) for t in range(60)],
    "crossed": [asked(), accepted(), answered(3.0, crossed="seed 8 of another request")],
    "slow_to_recover": [
        asked(),
        accepted(),
        Fault(2.0, 5.0, "redis-kill", "redis"),
        Opened(5.1, 1),
        recorded(9.0),
        answered(9.1),
    ],
    "stolen": [Stolen(3.0, "a" * 32, "worker-1", "worker-2")],
}


@pytest.mark.parametrize("rule", VIOLATIONS)
def test_each_invariant_is_flagged_when_it_alone_is_violated(rule: str) -> None:
    assert broken(*VIOLATIONS[rule]) == {rule}


def test_there_is_a_violation_for_every_rule() -> None:
    assert set(VIOLATIONS) == set(RULES)


def test_a_limit_that_an_overload_never_reached_is_flagged() -> None:
    bounds = Bounds(0.0, open_jobs=4, lease_s=1.0, overload=True, redis_bytes=MIB)

    assert check([bounds, Opened(2.0, 3)]).found["over_limit"]
    assert not check([bounds, Opened(2.0, 4)]).found["over_limit"]


def test_the_answer_of_another_tokenize_request_is_crossed() -> None:
    first, second = (asked(n, seed=n, action="tokenize") for n in (1, 2))
    wrong = Answered(3.0, 1, "", 2.0, DONE, digest=right_digest("tokenize", 2, 2))

    assert broken(first, second, wrong) == {"changed", "crossed"}


@pytest.mark.parametrize(
    "event",
    [
        answered(3.1, FAILED, code="internal"),
        answered(3.1, CANCELLED, code="cancelled"),
        answered(3.1, EXPIRED, code="deadline_unmeetable", job=""),
        Turned(3.1, 1, 500, "internal"),
    ],
)
def test_an_end_without_a_cause_is_flagged(event: Event) -> None:
    assert broken(asked(), event) == {"groundless"}
    assert broken(asked(action="cancel", deadline_ms=400), answered(3.1, CANCELLED)) == set()


def test_a_job_that_comes_back_only_after_its_client_stopped_looking_was_lost() -> None:
    story = [asked(), accepted(), Loss(5.0, 5.5, wiped=True), answered(26.0, UNKNOWN), recorded(40.0)]

    assert broken(*story) == {"lost"}


def test_poison_that_is_done_is_flagged_and_poison_that_is_poisoned_is_right() -> None:
    poison = asked(poison=True)

    assert broken(poison, accepted(), answered(3.0)) == {"falsely_poisoned"}
    assert broken(poison, accepted(), answered(9.0, FAILED, code="poisoned")) == set()


def test_an_expired_job_with_a_generous_deadline_was_lost() -> None:
    late = answered(70.0, EXPIRED, code="deadline_passed")

    assert broken(asked(), accepted(), late) == {"lost"}
    assert broken(asked(deadline_ms=400), accepted(), late) == set()


def test_requests_that_are_never_taken_in_are_flagged_when_there_are_many() -> None:
    assert broken(asked(), GaveUp(80.0, 1, "")) == {"stuck"}


@pytest.mark.parametrize("action", ["wait", "stream"])
def test_a_request_without_an_answer_is_flagged_unless_there_was_a_fault(action: str) -> None:
    # It was sent at 20 s.
    story = [asked(action=action), Turned(20.0 + TIMEOUT_S, 1, 0, "TimeoutError: "), answered(40.0)]

    assert broken(*story) == {"stuck"}
    assert broken(*story, Fault(10.0, 17.9, "link-reset", "gateway-0")) == {"stuck"}
    assert broken(*story, Fault(35.1, 36.0, "link-reset", "gateway-0")) == {"stuck"}
    for fault in (Fault(10.0, 18.1, "link-reset", "gateway-0"), Fault(30.0, 36.0, "redis-kill", "redis")):
        assert broken(*story, fault) == set()
    cut_off = Turned(35.0, 1, 0, "IncompleteReadError: 0 bytes read")
    assert broken(asked(action=action), cut_off, answered(40.0)) == set()


def test_redis_that_grows_without_results_is_flagged() -> None:
    assert broken(rest(redis_bytes=100 * MIB)) == {"grown"}


def test_an_unknown_job_is_lost_unless_redis_had_lost_its_result() -> None:
    story = [asked(), accepted(), recorded(3.0), Missing(6.0, 1, "a" * 32), answered(7.0, UNKNOWN)]

    assert broken(*story) == {"lost"}
    verdict = check([BOUNDS, *story, Loss(5.0, 5.5, wiped=True)])
    assert verdict.holds
    assert verdict.excused == {"jobs that had ended before Redis lost their results": 1}


def test_a_job_may_be_unknown_for_a_while_if_redis_was_emptied_after_it_had_been_sent() -> None:
    """Its client heard of the acceptance only after that."""
    story = [asked(), accepted(6.0), Missing(6.1, 1, "a" * 32), recorded(7.0), answered(7.1)]
    assert broken(*story) == {"lost"}
    assert broken(*story, Loss(5.0, 5.8, wiped=True)) == {"lost"}
    assert broken(*story, Loss(5.0, 5.95, wiped=True)) == set()
    assert broken(*story, Loss(6.2, 6.3, wiped=True)) == {"lost"}


def test_a_waiting_job_that_redis_lost_is_held_against_its_gateway_if_that_lived() -> None:
    story: list[Event] = [asked(), accepted(), Loss(5.0, 5.5, wiped=True), answered(20.0, UNKNOWN)]

    assert broken(*story) == {"lost"}
    assert broken(*story, Life(0.0, 4.0, "gateway-1", 9)) == {"lost"}
    verdict = check([BOUNDS, *story, Life(0.0, 4.0, "gateway-0", 9)])
    assert verdict.excused == {"jobs whose gateway ended when Redis lost them": 1}


def test_a_cut_file_excuses_only_what_happened_just_before() -> None:
    loss = Loss(50.0, 50.5, wiped=False)
    early = [asked(), accepted(), recorded(3.0), recorded(60.0), answered(60.1)]
    late = [asked(), accepted(48.0), recorded(49.5), recorded(60.0), answered(60.1)]

    assert broken(*early, loss) == {"doubled"}
    assert broken(*late, loss) == set()


def test_a_slow_recovery_counts_at_the_end_of_the_last_of_overlapping_faults() -> None:
    story: list[Event] = [asked(), accepted(), Opened(5.1, 1), recorded(9.0), answered(9.1)]
    first = Fault(2.0, 5.0, "redis-kill", "redis")

    assert broken(*story, first) == {"slow_to_recover"}
    assert broken(*story, first, Fault(4.0, 8.0, "redis-stop", "redis")) == set()


def test_a_journal_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for event in GOOD:
        journal.write(event)
    journal.close()

    assert read_journal(tmp_path / "journal.jsonl") == GOOD
