"""Tables that batch whole requests, to compare step-level batching with; for benchmarks alone.

Both start a batch when the table is empty, and answer it when its longest request is done.
"""

from __future__ import annotations

from service.worker.scheduler import Row, SlotTable


class EarlyExitTable(SlotTable):
    """Rows whose last step is done cost the network nothing more, but wait for the rest of their batch."""

    def admit(self) -> list[Row]:
        """The rows of the next step: a new batch when the last one has been taken."""
        if not self.active:
            super().admit()
        return [row for row in self.active if not row.finished]

    def take_finished(self) -> list[Row]:
        """The whole batch once all of it is done."""
        return super().take_finished() if all(row.finished for row in self.active) else []


class FixedBatchTable(SlotTable):
    """A batch keeps its size: each row costs the network as many steps as the longest row of its batch."""

    def admit(self) -> list[Row]:
        """The rows of the next step: a new batch when the last one has been taken."""
        if not self.active:
            longest = max((len(row.plans) for row in super().admit()), default=0)
            for row in self.active:
                row.plans = [*row.plans, *[row.plans[-1]] * (longest - len(row.plans))]
        return self.active
