"""What the log says of a Redis that is away: one line when it goes, one when it is back."""

import logging

from service.jobs.redis_link import describe

_log = logging.getLogger(__name__)


class Outage:
    """For loops that meet the same trouble: the first to fail tells it, the last to succeed tells its end."""

    def __init__(self) -> None:
        self._failing: set[str] = set()

    def begin(self, what: str, error: BaseException) -> None:
        """`what` cannot be done."""
        if not self._failing:
            _log.warning("%s, trying again: %s", what, describe(error))
        self._failing.add(what)

    def end(self, what: str) -> None:
        """It was done."""
        if what in self._failing:
            self._failing.remove(what)
            if not self._failing:
                _log.info("Redis answers again")
