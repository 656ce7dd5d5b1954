"""What the clients of a chaos run do, and how each writes down what it was told."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from service.chaos import expected
from service.chaos.http_client import Broken, HttpClient, Reply, message
from service.chaos.journal import (
    CANCELLED,
    DONE,
    EXPIRED,
    FAILED,
    UNKNOWN,
    Accepted,
    Answered,
    Asked,
    CancelSaid,
    GaveUp,
    Journal,
    Missing,
    Turned,
    now,
)
from service.chaos.told import Told, digest_of_result, foreign
from service.chaos.workload import Request

PATIENCE_S = 75.0
"""Longer than any deadline."""
_MISSING_S = 20.0
"""A job that Redis has lost is back by then, if its gateway lives: a place goes to it before any new job."""
_STATES = {200: DONE, 409: CANCELLED, 410: UNKNOWN, 500: FAILED, 504: EXPIRED}
_JSON = {"Content-Type": "application/json"}


class Clients:
    """All clients of one run; `fronts` are the gateways' proxies by name."""

    def __init__(self, fronts: Mapping[str, int], journal: Journal, seed: int) -> None:
        self._names = list(fronts)
        self._http = {name: HttpClient(port) for name, port in fronts.items()}
        self._journal = journal
        self._rng = random.Random(seed)

    def close(self) -> None:
        """Drop the connections."""
        for client in self._http.values():
            client.close()

    async def run(self, requests: Sequence[Request]) -> None:
        """Send every request at its time, whatever became of those before, and see each to its end."""
        started = now()
        async with asyncio.TaskGroup() as group:
            for request in requests:
                await asyncio.sleep(max(0.0, started + request.at_s - now()))
                group.create_task(self._do(request))

    async def _do(self, request: Request) -> None:
        what = (request.n, request.action, request.seed, request.steps, request.deadline_ms)
        self._journal.write(Asked(now(), *what, poison=request.poison, key=request.key))
        action = getattr(self, f"_{request.action}")
        try:
            async with asyncio.timeout(2 * PATIENCE_S):
                await action(request)
        except (TimeoutError, asyncio.CancelledError) as exc:
            self._journal.write(GaveUp(now(), request.n, ""))
            if isinstance(exc, asyncio.CancelledError):
                raise

    # -- actions ---------------------------------------------------------------------------------------------

    async def _wait(self, request: Request, slowly: str = "") -> None:
        await self._ask(request, "/generate", request.drawing(), _JSON, slowly=slowly)

    async def _slow(self, request: Request) -> None:
        await self._wait(request, self._rng.choice(("head", "body", "read")))

    async def _tokenize(self, request: Request) -> None:
        body = expected.picture(request.seed)
        await self._ask(request, "/tokenize?encoding=indices", body, {"Content-Type": "image/png"})

    async def _detokenize(self, request: Request) -> None:
        fields = {"indices": expected.grid_of(request.seed).tolist(), "deadline_ms": request.deadline_ms}
        await self._ask(request, "/detokenize", json.dumps(fields).encode(), _JSON)

    async def _stream(self, request: Request) -> None:
        await self._ask(request, "/generate", request.drawing(stream=True), _JSON)

    async def _poll(self, request: Request) -> None:
        if job_id := await self._order(request, self._any()):
            await self._await_end(request, job_id)

    async def _short(self, request: Request) -> None:
        await self._poll(request)

    async def _repeat(self, request: Request) -> None:
        first, second = self._pair()
        ids = await asyncio.gather(self._order(request, first), self._order(request, second))
        await asyncio.sleep(self._rng.uniform(0.0, 1.0))
        again = await self._order(request, first)
        for job_id in dict.fromkeys(filter(None, (*ids, again))):
            await self._await_end(request, job_id)

    async def _cancel(self, request: Request) -> None:
        first, second = self._pair()
        job_id = await self._order(request, first)
        if not job_id:
            return
        await asyncio.sleep(self._rng.uniform(0.0, 0.4))
        await self._delete(request, job_id, second)
        if await self._await_end(request, job_id):
            # A result that comes late must not bring a cancelled job back.
            await asyncio.sleep(1.0)
            await self._await_end(request, job_id)

    async def _leave(self, request: Request) -> None:
        with suppress(OSError):
            connection = await self._http[self._any()].connect()
            try:
                await connection.send(message("POST", "/generate", request.drawing(), _JSON))
                await asyncio.sleep(self._rng.uniform(0.0, 0.2))
            finally:
                connection.close()

    # -- parts of actions ------------------------------------------------------------------------------------

    def _any(self) -> str:
        return self._rng.choice(self._names)

    def _pair(self) -> tuple[str, str]:
        first, second = self._rng.sample(self._names, 2)
        return first, second

    async def _ask(
        self, request: Request, path: str, body: bytes, headers: Mapping[str, str], *, slowly: str = ""
    ) -> None:
        """Ask for the answer itself, again and again until there is one."""
        began = now()
        while now() < began + PATIENCE_S:
            gateway, sent = self._any(), now()
            told = Told()
            reply = await self._send(request, gateway, "POST", path, body, headers, told=told, slowly=slowly)
            if told.job_id:
                self._journal.write(Accepted(now(), request.n, told.job_id, sent, gateway, kept=False))
            if reply is not None and self._conclude(request, reply, told, sent):
                return
            await self._hold_off(began)
        self._journal.write(GaveUp(now(), request.n, ""))

    def _conclude(self, request: Request, reply: Reply, told: Told, sent: float) -> bool:
        """Write down what a waiting client was told; False when it has to ask again."""
        if reply.headers.get("content-type", "").startswith("text/event-stream"):
            answer = told.answer()
            if answer is None:
                return False
            status, content = answer
        else:
            status, content = reply.status, reply.json()
        if status not in _STATES or (status == 500 and content["error"]["code"] == "internal"):
            self._turned(request, status, content)
            return False
        self._answered(request, told.job_id or content.get("id", ""), status, content, sent)
        return True

    async def _order(self, request: Request, gateway: str) -> str:
        """`POST /jobs` until it is accepted: the job's id. Empty when nobody would take it."""
        began = now()
        headers = {**_JSON, "Idempotency-Key": request.key} if request.key else _JSON
        while now() < began + PATIENCE_S:
            sent = now()
            body = request.drawing(kind="generate")
            reply = await self._send(request, gateway, "POST", "/jobs", body, headers)
            if reply is not None:
                content = reply.json()
                if reply.status == 202:
                    job_id = str(content["id"])
                    self._journal.write(Accepted(now(), request.n, job_id, sent, gateway, kept=True))
                    return job_id
                self._turned(request, reply.status, content)
                # Its time was over before it was taken in.
                if reply.status == 504 and request.action == "short":
                    return ""
            await self._hold_off(began)
            gateway = self._any() if not request.key else gateway
        self._journal.write(GaveUp(now(), request.n, ""))
        return ""

    async def _await_end(self, request: Request, job_id: str) -> bool:
        """Look, at any gateway, until the job has ended; False if no end of it is known."""
        began, missing_since = now(), 0.0
        while now() < began + PATIENCE_S:
            reply = await self._send(request, self._any(), "GET", f"/jobs/{job_id}")
            if reply is None or reply.status not in (202, 404, *_STATES):
                await self._pause()
                continue
            if reply.status == 404:
                self._journal.write(Missing(now(), request.n, job_id))
                missing_since = missing_since or now()
                if now() > missing_since + _MISSING_S:
                    self._journal.write(Answered(now(), request.n, job_id, began, UNKNOWN))
                    return False
            elif reply.status != 202:
                self._answered(request, job_id, reply.status, reply.json(), began)
                return True
            await self._pause(0.05)
        self._journal.write(GaveUp(now(), request.n, job_id))
        return False

    async def _delete(self, request: Request, job_id: str, gateway: str) -> None:
        give_up = now() + 10.0
        while now() < give_up:
            reply = await self._send(request, gateway, "DELETE", f"/jobs/{job_id}")
            if reply is not None and reply.status == 200:
                if reply.json()["state"] == CANCELLED:
                    self._journal.write(CancelSaid(now(), request.n, job_id))
                return
            await self._pause()

    async def _send(
        self,
        request: Request,
        gateway: str,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        told: Told | None = None,
        slowly: str = "",
    ) -> Reply | None:
        """One exchange; None when the connection broke."""
        request_id = uuid.uuid4().hex
        more = {**(headers or {}), "X-Request-ID": request_id}
        on_chunk = told.feed if told is not None else None
        try:
            reply = await self._http[gateway].request(
                method, path, body, more, on_chunk=on_chunk, slowly=slowly
            )
        except Broken as exc:
            self._journal.write(Turned(now(), request.n, 0, str(exc)[:80]))
            return None
        got = reply.headers.get("x-request-id")
        # A request whose headers do not come in time has no id yet.
        if got != request_id and reply.status == 408:
            self._journal.write(Turned(now(), request.n, 408, "request_timeout"))
            return None
        if got != request_id:
            crossed = f"the answer of request {got}"
            self._journal.write(Answered(now(), request.n, "", now(), UNKNOWN, crossed=crossed))
            return None
        return reply

    def _turned(self, request: Request, status: int, content: Any) -> None:
        self._journal.write(Turned(now(), request.n, status, str(content["error"]["code"])))

    def _answered(self, request: Request, job_id: str, status: int, content: Any, sent: float) -> None:
        state, code, digest, crossed = _STATES[status], "", "", ""
        error = content.get("error")
        if error:
            code = str(error["code"])
        if content.get("state") and content.get("id") != job_id:
            crossed = f"job {content.get('id')} instead of {job_id}"
        if state == DONE:
            result = content.get("result", content)
            digest, crossed = digest_of_result(result), crossed or foreign(request, result)
        self._journal.write(Answered(now(), request.n, job_id, sent, state, code, digest, crossed))

    async def _hold_off(self, began: float) -> None:
        """Wait before trying again: the longer, the longer it has been of no use."""
        await self._pause(min(2.0, 0.2 + 0.5 * (now() - began)))

    async def _pause(self, about_s: float = 0.25) -> None:
        await asyncio.sleep(self._rng.uniform(0.5, 1.5) * about_s)
