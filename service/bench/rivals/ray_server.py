"""The no-op job on Ray Serve, run by its own Python: a port; the answer is in the file that ANSWER names."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import ray  # type: ignore[import-not-found]
from ray import serve
from starlette.requests import Request


class NoOp:
    """Gives the prepared answer to every request."""

    def __init__(self, answer: str) -> None:
        self.answer: dict[str, Any] = json.loads(Path(answer).read_text())

    async def __call__(self, request: Request) -> dict[str, Any]:
        """The answer."""
        await request.json()
        return self.answer


def main() -> None:
    """Serve until SIGTERM."""
    stopping = {signal.SIGTERM, signal.SIGINT}
    ray.init(_node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    deployment = serve.deployment(num_replicas=1, max_ongoing_requests=100)(NoOp)
    serve.run(deployment.bind(os.environ["ANSWER"]), route_prefix="/generate")
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    signal.sigwait(stopping)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
