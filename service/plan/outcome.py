"""What became of the requests of a simulation."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.plan.requests import Request


@dataclass
class Outcome:
    """Times in seconds; latencies of the requests that were answered, in the order of their answers."""

    latencies: dict[Request, float] = field(default_factory=dict)
    turned_away: int = 0
    """Refused on arrival: the queue was full, or the deadline could not be met."""
    expired: int = 0
    """Ended unanswered by their deadline."""
    seconds: float = 0.0
    busy_s: list[float] = field(default_factory=list)
    """In calls of the network, of each worker."""
    calls: int = 0
    """Sampling steps of all workers."""
    pictures_stepped: int = 0
    open_s: float = 0.0
    """Integral of the open jobs over time."""
    most_open: int = 0
    most_tokenizing: int = 0
    """Of these, those that tokenize."""
    most_waiting: int = 0
    """Jobs in the streams that no worker has taken."""

    @property
    def answered(self) -> int:
        """Requests that got their result."""
        return len(self.latencies)

    @property
    def lost(self) -> float:
        """Share of the requests that got none."""
        lost = self.turned_away + self.expired
        return lost / (lost + self.answered) if lost else 0.0

    @property
    def busy(self) -> float:
        """Share of the time that a worker's network computes, on average."""
        return sum(self.busy_s) / len(self.busy_s) / self.seconds

    @property
    def pictures_per_step(self) -> float:
        """Pictures that are drawn together, on average over the steps."""
        return self.pictures_stepped / self.calls if self.calls else 0.0

    @property
    def mean_open(self) -> float:
        """Jobs that were accepted and had not ended, on average over time."""
        return self.open_s / self.seconds

    def quantile_s(self, share: float, *, generate: bool = True, after_s: float = 0.0) -> float:
        """The latency that `share` of the requests of a kind stayed within that came after `after_s`."""
        ordered = sorted(
            seconds
            for one, seconds in self.latencies.items()
            if one.generate == generate and one.at_s >= after_s
        )
        if not ordered:
            return float("inf")
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
