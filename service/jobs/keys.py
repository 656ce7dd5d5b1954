"""Every Redis name of the job protocol, all in one hash slot, so that one script may touch any of them."""

import hashlib
from dataclasses import dataclass

GROUP = "g"
ALLOWANCES = "maskbit:{allowances}:"
"""Prefix of the hashes that count what tenants ask for, whichever bundle it is."""


def revisions_of(bundle: str) -> str:
    """Sorted set: the revisions of a bundle that workers have loaded, by the time of it, in µs."""
    return f"maskbit:{{{bundle}}}:revisions"


def manifests_of(bundle: str) -> str:
    """Hash: the manifest of each of these revisions."""
    return f"maskbit:{{{bundle}}}:manifests"


@dataclass(frozen=True)
class Keys:
    """The key names for one bundle at one revision.

    Raises ValueError for an empty name or one with braces, which would move the keys to other hash slots.
    """

    bundle: str
    revision: str

    def __post_init__(self) -> None:
        for name in (self.bundle, self.revision):
            if not name or "{" in name or "}" in name:
                raise ValueError(f"bundle and revision must be non-empty and without braces, got {name!r}")

    def _name(self, suffix: str) -> str:
        return f"maskbit:{{{self.bundle}@{self.revision}}}:{suffix}"

    @property
    def interactive(self) -> str:
        """Stream of generate jobs that somebody waits for."""
        return self._name("q0")

    @property
    def bulk(self) -> str:
        """Stream of generate jobs in the background."""
        return self._name("q1")

    @property
    def codec(self) -> str:
        """Stream of tokenize and detokenize jobs, which are short and never wait behind generation."""
        return self._name("qc")

    @property
    def queues(self) -> tuple[str, str, str]:
        """All job streams."""
        return (self.interactive, self.bulk, self.codec)

    @property
    def shared(self) -> tuple[str, ...]:
        """KEYS of every script, in the order in which lua/common.lua unpacks them.

        The last one is the prefix of the job hashes; names that belong to one job travel inside its hash.
        """
        names = (
            "open",
            "res",
            "gone",
            "released",
            "dead",
            "waiting",
            "workers",
            "leaving",
            "closed",
            "turn",
            "owed",
        )
        return (*self.queues, *(self._name(name) for name in names), self._name("j:"))

    @property
    def dead(self) -> str:
        """Stream of poisoned jobs."""
        return self._name("dead")

    @property
    def open(self) -> str:
        """Sorted set: accepted and not yet terminal job ids by deadline, in ms."""
        return self._name("open")

    @property
    def results(self) -> str:
        """Sorted set: terminal job ids by the time at which their result is dropped, in ms."""
        return self._name("res")

    @property
    def waiting(self) -> str:
        """Hash: for each job stream, the rows that its queued jobs cost the network."""
        return self._name("waiting")

    @property
    def workers(self) -> str:
        """Sorted set: names of the keys of living workers by the time at which they count as gone, in ms."""
        return self._name("workers")

    @property
    def leaving(self) -> str:
        """Sorted set like `workers`, of those that end with the last open job and are chosen no more."""
        return self._name("leaving")

    def job(self, job_id: str) -> str:
        """Hash with the truth about one job."""
        return self._name(f"j:{job_id}")

    def tenant(self, tenant: str) -> str:
        """Set of the open job ids of one tenant."""
        return self._name(f"t:{tenant}")

    def idempotency(self, tenant: str, key: str) -> str:
        """String: the job id that a tenant's idempotency key, which may be any text, led to."""
        return self._name(f"idem:{tenant}:{hashlib.sha256(key.encode()).hexdigest()}")

    def inbox(self, incarnation: str) -> str:
        """Stream that tells one gateway process about its terminal jobs."""
        return self._name(f"gw:{incarnation}")

    def events(self, job_id: str) -> str:
        """Capped stream of a job's progress."""
        return self._name(f"ev:{job_id}")

    def hint(self, worker_id: str) -> str:
        """Capped stream of the ids that one worker should stop."""
        return self._name(f"hint:{worker_id}")

    def worker(self, worker_id: str) -> str:
        """String with a time to live: what one worker says about itself."""
        return self._name(f"w:{worker_id}")
