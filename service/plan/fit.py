"""How a number of workers fares under a load, with several sequences of arrivals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from service.plan.outcome import Outcome

WARM_UP = 0.15  # share of the requests that find the service emptier than it will be


@dataclass(frozen=True)
class Fit:
    """`pool` of `workers` were simulated with their share of the load, once for each sequence of arrivals.

    `workers` are those of all shards, which fare alike. Where outcomes differ, the worst of them counts.
    """

    workers: int
    pool: int
    outcomes: tuple[Outcome, ...]

    def quantiles_s(self, share: float, *, generate: bool = True) -> list[float]:
        """Of the latency of requests of a kind, past the beginning, in each outcome."""
        return [
            outcome.quantile_s(share, generate=generate, after_s=_full_from_s(outcome))
            for outcome in self.outcomes
        ]

    def quantile_s(self, share: float) -> float:
        """The worst of them, of requests that draw."""
        return max(self.quantiles_s(share))

    def tokenize_s(self, share: float) -> float | None:
        """The same of requests that tokenize; None where none was answered."""
        # A sequence may have none of them.
        quantiles = self.quantiles_s(share, generate=False)
        return max((seconds for seconds in quantiles if seconds < math.inf), default=None)

    def slowest_s(self, share: float) -> float:
        """The same of the kind of requests for which it is worse."""
        return max(self.quantile_s(share), self.tokenize_s(share) or 0.0)

    @property
    def lost(self) -> float:
        """Share of the requests without an answer."""
        return max(outcome.lost for outcome in self.outcomes)

    @property
    def busy(self) -> float:
        """Share of the time that a worker's network computes, on average."""
        return fmean(outcome.busy for outcome in self.outcomes)

    @property
    def pictures_per_step(self) -> float:
        """Pictures that are drawn together, on average over the steps."""
        return fmean(outcome.pictures_per_step for outcome in self.outcomes)

    @property
    def most_open(self) -> float:
        """Open jobs of all workers at most."""
        return self._whole(max(outcome.most_open for outcome in self.outcomes))

    @property
    def most_tokenizing(self) -> float:
        """Of these at most that tokenize."""
        return self._whole(max(outcome.most_tokenizing for outcome in self.outcomes))

    @property
    def most_waiting(self) -> float:
        """Jobs at most that no worker has taken."""
        return self._whole(max(outcome.most_waiting for outcome in self.outcomes))

    def _whole(self, simulated: float) -> float:
        return simulated * self.workers / self.pool


def _full_from_s(outcome: Outcome) -> float:
    """When the service was as full as it gets; what came earlier does not count."""
    return WARM_UP * max((one.at_s for one in outcome.latencies), default=0.0)
