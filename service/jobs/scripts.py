"""The Lua scripts of the job protocol, each with the functions that it shares with others in front."""

import hashlib
from functools import cache
from importlib import resources

_PRELUDES = {
    "claim": ("common", "terminate", "attempt"),
    "reclaim": ("common", "terminate", "attempt"),
    "finish": ("common", "terminate"),
    "cancel": ("common", "terminate"),
    "sweep": ("common", "terminate", "drop"),
    "submit": ("common", "drop"),
    "forget": ("common", "drop"),
    "charge": (),
}

GATEWAY = ("submit", "cancel", "sweep", "view", "states", "forget", "depth", "door", "first", "dissolve")
WORKER = ("claim", "reclaim", "beat", "finish", "release", "announce", "leave", "retire")


@cache
def source(name: str) -> str:
    """The whole text of the script `name`."""
    folder = resources.files("service.jobs") / "lua"
    parts = (*_PRELUDES.get(name, ("common",)), name)
    return "\n".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in parts)


@cache
def digest(name: str) -> str:
    """What Redis calls the script `name` once it knows it."""
    return hashlib.sha1(source(name).encode()).hexdigest()
