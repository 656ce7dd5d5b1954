"""The no-op job on LitServe, run by its own Python: a port; the answer is in the file that ANSWER names."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import litserve  # type: ignore[import-not-found]


class NoOp(litserve.LitAPI):  # type: ignore[misc]
    """Gives the prepared answer to every request."""

    def setup(self, device: str) -> None:
        """Called once in the worker process."""
        self.answer: dict[str, Any] = json.loads(Path(os.environ["ANSWER"]).read_text())

    def predict(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The answer."""
        return self.answer


if __name__ == "__main__":
    server = litserve.LitServer(NoOp(api_path="/generate"), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False)
