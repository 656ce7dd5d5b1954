"""Broken variants of the job protocol, patched into the processes of a chaos run, never into the product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from service.jobs import scripts


@dataclass(frozen=True)
class Mutant:
    """`edits`: (script text that must be there, what stands there instead). `shows`: rules that find it."""

    name: str
    breaks: str
    shows: tuple[str, ...]
    edits: tuple[tuple[str, str], ...] = ()
    no_ack: bool = False
    fsync: str = "always"


# Without a pending entry nobody would be its holder, and nothing would run at all.
_HOLDS_ALWAYS = (
    "local function holds(queue, entry, owner)\n",
    "local function holds(queue, entry, owner)\n  if true then return true end\n",
)

_STILL_OURS = "if f[1] == 'R' and f[2] == owner and f[3] == entry and holds(queue, entry, owner) then"

MUTANTS = {
    mutant.name: mutant
    for mutant in (
        Mutant(
            "noack",
            "entries are delivered without being pending",
            shows=("lost",),
            edits=(
                (
                    "'COUNT', most, 'STREAMS', queue, from)\n  if reply",
                    "'COUNT', most, 'NOACK', 'STREAMS', queue, from)\n  if reply",
                ),
                _HOLDS_ALWAYS,
            ),
            no_ack=True,
        ),
        Mutant(
            "ack-before-result",
            "entries are acknowledged when the attempt begins",
            shows=("lost",),
            edits=(
                (
                    "    redis.call('ZREM', RELEASED, id)\n  end\n  return {",
                    "    redis.call('ZREM', RELEASED, id)\n  end\n"
                    "  redis.call('XACK', queue, GROUP, entry)\n  return {",
                ),
                _HOLDS_ALWAYS,
            ),
        ),
        Mutant(
            "no-terminal-guard",
            "a terminal job can become terminal again",
            shows=("doubled", "revived"),
            edits=(
                (
                    "if before ~= 'Q' and before ~= 'R' then return false end",
                    "if not before then return false end",
                ),
            ),
        ),
        Mutant(
            "steal-back",
            "a beat renews leases that another worker took over",
            shows=("stolen",),
            edits=((_STILL_OURS, "if true then"),),
        ),
        Mutant(
            "door-never-closed",
            "a gateway that has not noticed a new revision goes on with the old one",
            shows=("ids_differ",),
            edits=(("redis.call('EXISTS', CLOSED) == 1 then return {'MOVED', id} end", "false then end"),),
        ),
        Mutant(
            "owed-ignored",
            "new jobs take the room of those that Redis has lost",
            shows=("lost",),
            edits=(("again == '0' and redis.call('EXISTS', OWED) == 1", "false"),),
        ),
        Mutant(
            "result-changed",
            "one byte of a result is another one",
            shows=("changed",),
            edits=(
                (
                    "{'result', result}",
                    "{'result', string.sub(result, 1, 600) .. string.char(1) .. string.sub(result, 602)}",
                ),
            ),
        ),
        Mutant(
            "everysec-slow-fsync",
            "appendfsync everysec on a slow disk",
            shows=("lost", "doubled", "revived", "ids_differ"),
            fsync="everysec",
        ),
    )
}


def mutated(mutant: Mutant, source: Callable[[str], str] = scripts.source) -> Callable[[str], str]:
    """`source`, with the edits of the mutant in every script that has their text."""

    @cache
    def changed(name: str) -> str:
        text = source(name)
        for old, new in mutant.edits:
            text = text.replace(old, new)
        return text

    return changed


def applies(mutant: Mutant) -> bool:
    """Whether every edit finds its text in some script."""
    texts = [scripts.source(name) for name in {*scripts.GATEWAY, *scripts.WORKER}]
    return all(any(old in text for text in texts) for old, _ in mutant.edits)
