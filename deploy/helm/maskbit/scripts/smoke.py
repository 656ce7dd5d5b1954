"""The pod of `helm test`: draws a picture with each model and tokenizes it, through the gateways' Service.

Usage: smoke.py URL SECONDS MODEL…; MASKBIT_API_KEY has a key where keys are set. Standard library only.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any

PAUSE_S = 2.0
TROUBLE = (OSError, http.client.HTTPException, ValueError, LookupError, TypeError)
ASK_S = 60.0  # for one answer


def ask(url: str, body: object = None) -> Any:
    """The JSON answer of a GET, or of a POST of `body`. Raises what `TROUBLE` lists."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("MASKBIT_API_KEY", "").strip():
        headers["X-API-Key"] = key
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, timeout=ASK_S) as reply:
        return json.load(reply)


def check(url: str, model: str) -> None:
    """Fail unless `model` draws a picture and makes tokens of it; one line about both."""
    info = ask(f"{url}/info?model={model}")
    started = time.monotonic()
    if info["has_generator"]:
        [picture] = ask(f"{url}/generate", {"class_id": 0, "seed": 1, "model": model})["images"]
    else:
        rows, columns = info["grid"]
        picture = ask(f"{url}/detokenize?model={model}", {"indices": [[0] * columns] * rows})
    drawn = time.monotonic()
    tokens = ask(f"{url}/tokenize?model={model}", {"image": picture["b64"]})
    if tokens["grid"] != info["grid"]:
        sys.exit(f"{model} at {url}: the grid of tokens is {tokens['grid']}, not {info['grid']}")
    done = time.monotonic()
    print(f"{tokens['bundle']}: drawn in {drawn - started:.2f} s, tokenized in {done - drawn:.2f} s")


def passing(error: Exception) -> bool:
    """Whether `error` may go away: no connection yet, one that broke, or no worker."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (429, 502, 503, 504)
    return isinstance(error, (OSError, http.client.HTTPException))


def detail(error: Exception) -> str:
    """One line about `error`, of the service where it said something."""
    if isinstance(error, urllib.error.HTTPError):
        with error, suppress(OSError, http.client.HTTPException):
            return " ".join(error.read(4096).decode(errors="replace").split())
    return f"no answer of a gateway: {error!r}"


def main(url: str, seconds: str, *models: str) -> int:
    """Check all models, each again until it passes or time is up; returns the exit code."""
    deadline = time.monotonic() + float(seconds)
    for model in models:
        while True:
            try:
                check(url, model)
                break
            except TROUBLE as error:
                if not passing(error) or time.monotonic() > deadline:
                    print(f"{model} at {url}: {detail(error)}", file=sys.stderr)
                    return 1
            time.sleep(PAUSE_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
