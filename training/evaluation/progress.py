"""A progress bar of pictures on the terminal's standard error."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class PictureBar:
    """Counts pictures towards `total`, which may be unknown, unless another process shows it."""

    def __init__(self, title: str, total: int | None, *, shown: bool, done: int = 0) -> None:
        self._bar = Progress(
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._bar.add_task(title, total=total, completed=done)

    def __enter__(self) -> PictureBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, pictures: int) -> None:
        """Count `pictures` more."""
        self._bar.advance(self._task, pictures)
