"""The no-op job on BentoML, run by its own `bentoml serve`; the answer is in the file that ANSWER names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import bentoml  # type: ignore[import-not-found]


@bentoml.service(workers=1, traffic={"timeout": 60})
class NoOp:
    """Gives the prepared answer to every request."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = json.loads(Path(os.environ["ANSWER"]).read_text())

    @bentoml.api  # type: ignore[untyped-decorator]
    async def generate(self, class_id: int, seed: int, steps: int, format: str) -> dict[str, Any]:  # noqa: A002
        """The answer."""
        return self.answer
