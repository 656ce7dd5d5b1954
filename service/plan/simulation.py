"""Gateways, queue and workers on a simulated clock: who claims which job when, and how long that takes.

The rules of the queue are those of `service/jobs`: a job goes to the worker whose blocking read has waited
longest, and to nobody while all are full; a worker with room takes what waits. Forecasts and refusals are
computed by `service.jobs.speed` from what the simulated workers announce.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

from models.schedule import StepPlan
from service.jobs.job import NewJob, QueueLimits
from service.jobs.payloads import GenerateJob
from service.jobs.speed import Speed, cost_of
from service.plan.outcome import Outcome
from service.plan.requests import Request, payload_of, plans_of
from service.plan.simulated_engine import SimulatedEngine, Turn
from service.plan.step_times import StepTimes
from service.worker.finisher import THREADS
from service.worker.task import Task

LOOK_S = 1.0  # a gateway looks so often at what the workers announce
# HTTP and submission, claim, result and answer: each is one exchange with Redis, and its fsync.
EXCHANGES = 3


@dataclass(frozen=True, kw_only=True)
class Scene:
    """`workers` alike, each with `slots`; every job has `deadline_s`, and so many may be open."""

    times: StepTimes
    workers: int
    slots: int
    deadline_s: float = 60.0
    open_jobs: int = QueueLimits.open_jobs


@dataclass(eq=False)
class _Job:
    request: Request
    new: NewJob
    task: Task


class _Line:
    """One stream: jobs that wait, or else workers that wait for them, with the room they had by then."""

    def __init__(self) -> None:
        self.jobs: deque[_Job] = deque()
        self.readers: deque[tuple[int, int]] = deque()
        self.cost = 0


class _Worker:
    """An engine, what it is doing, and the threads that make files of its pictures."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self.engine = engine
        self.turning = False
        self.claiming = {True: False, False: False}
        self.files_done_s = [0.0] * THREADS


def simulate(scene: Scene, requests: Sequence[Request]) -> Outcome:
    """All of `requests`, in the order of their times, until each is answered, refused or late."""
    return _Simulation(scene).run(requests)


class _Simulation:
    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._outcome = Outcome()
        self._lines = {True: _Line(), False: _Line()}
        self._open: dict[str, _Job] = {}
        self._tokenizing = 0
        self._speed, self._looked_s = Speed(), float("-inf")
        self._exchange_s = scene.times.service_s / EXCHANGES
        self._workers = [
            _Worker(SimulatedEngine(scene.times, scene.slots, _plans, lambda: self._now_s))
            for _ in range(scene.workers)
        ]

    def run(self, requests: Sequence[Request]) -> Outcome:
        """Every event in the order of time."""
        for number in range(len(self._workers)):
            self._offer(number)
        for request in requests:
            self._at(request.at_s + self._exchange_s, partial(self._arrive, request))
        while self._events:
            at_s, _, event = heapq.heappop(self._events)
            self._outcome.open_s += len(self._open) * (at_s - self._now_s)
            self._now_s = at_s
            event()
        self._outcome.seconds = self._now_s
        for worker in self._workers:
            self._outcome.busy_s.append(worker.engine.busy_s)
            self._outcome.calls += worker.engine.calls
            self._outcome.pictures_stepped += worker.engine.pictures_stepped
        return self._outcome

    def _at(self, at_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), event))

    # -- gateway ---------------------------------------------------------------------------------------------

    def _arrive(self, request: Request) -> None:
        job = self._job_of(request)
        line = self._lines[request.generate]
        if not self._accepts(job, line):
            self._outcome.turned_away += 1
            return
        self._enter(job)
        line.cost += job.new.cost
        if line.readers:
            number, limit = line.readers.popleft()
            claim = partial(self._claim, number, request.generate, limit, job)
            self._at(self._now_s + self._exchange_s, claim)
        else:
            line.jobs.append(job)
            self._outcome.most_waiting = max(self._outcome.most_waiting, self._waiting())

    def _enter(self, job: _Job) -> None:
        self._open[job.new.id] = job
        self._tokenizing += not job.request.generate
        self._outcome.most_open = max(self._outcome.most_open, len(self._open))
        self._outcome.most_tokenizing = max(self._outcome.most_tokenizing, self._tokenizing)

    def _leave(self, task: Task) -> Request:
        request = self._open.pop(task.id).request
        self._tokenizing -= not request.generate
        return request

    def _waiting(self) -> int:
        return sum(len(line.jobs) for line in self._lines.values())

    def _job_of(self, request: Request) -> _Job:
        payload = payload_of(self._scene.times.sampling, request.images, request.steps)
        name, deadline_s = str(request.number), self._scene.deadline_s
        new = NewJob(
            id=name,
            kind=payload.kind,
            payload=b"",
            fingerprint="",
            rows=request.images,
            deadline_ms=round(1000 * deadline_s),
            cost=cost_of(payload),
        )
        # Where the deadline begins: when the job was accepted.
        return _Job(request, new, Task(name, payload, deadline_s=self._now_s + deadline_s))

    def _accepts(self, job: _Job, line: _Line) -> bool:
        """As `lua/submit.lua` decides."""
        if len(self._open) >= self._scene.open_jobs:
            return False
        if self._now_s - self._looked_s > LOOK_S:
            self._looked_s = self._now_s
            self._speed = Speed.of([worker.engine.announcement() for worker in self._workers])
        forecast = self._speed.forecast(job.new)
        return forecast.run_ms + forecast.wait_ms(line.cost) <= job.new.deadline_ms

    # -- queue -----------------------------------------------------------------------------------------------

    def _offer(self, number: int) -> None:
        """Let a worker with room claim what waits, or wait for what comes."""
        for generate, line in self._lines.items():
            worker = self._workers[number]
            free = worker.engine.free_slots() if generate else worker.engine.free_codec()
            if not free or worker.claiming[generate]:
                continue
            worker.claiming[generate] = True
            if line.jobs:
                self._at(self._now_s + self._exchange_s, partial(self._claim, number, generate, free, None))
            else:
                line.readers.append((number, free))

    def _claim(self, number: int, generate: bool, limit: int, first: _Job | None) -> None:
        """Take jobs until their pictures number `limit`; `first` was given to a blocking read."""
        worker, line, images = self._workers[number], self._lines[generate], 0
        found = [first] if first else []
        while found or (line.jobs and images < limit):
            job = found.pop() if found else line.jobs.popleft()
            line.cost -= job.new.cost
            if job.task.deadline_s <= self._now_s:
                self._expire(job.task)
            else:
                worker.engine.submit(job.task)
                images += job.task.images
        worker.claiming[generate] = False
        self._turn(number)
        self._offer(number)

    # -- workers ---------------------------------------------------------------------------------------------

    def _turn(self, number: int) -> None:
        """Begin a turn unless one is under way."""
        worker = self._workers[number]
        if worker.turning:
            return
        turn, late = worker.engine.begin()
        for task in late:
            self._expire(task)
        if turn is not None:
            worker.turning = True
            self._at(self._now_s + turn.call_s, partial(self._called, number, turn))
        if late:
            self._offer(number)

    def _called(self, number: int, turn: Turn) -> None:
        decoding_s = self._workers[number].engine.called(turn)
        if decoding_s:
            # Their slots are free already.
            self._offer(number)
            self._at(self._now_s + decoding_s, partial(self._ended, number, turn))
        else:
            self._ended(number, turn)

    def _ended(self, number: int, turn: Turn) -> None:
        worker = self._workers[number]
        done = worker.engine.ended(turn)
        for task in done:
            self._record(worker, task)
        worker.turning = False
        self._turn(number)
        if done:
            self._offer(number)

    def _record(self, worker: _Worker, task: Task) -> None:
        """Make the files in one of the worker's threads, then record and answer."""
        files = task.images if isinstance(task.request, GenerateJob) else 0
        began_s = max(self._now_s, heapq.heappop(worker.files_done_s))
        done_s = began_s + files * self._scene.times.file_s
        heapq.heappush(worker.files_done_s, done_s)
        self._at(done_s + self._exchange_s, partial(self._answer, task))

    def _answer(self, task: Task) -> None:
        request = self._leave(task)
        self._outcome.latencies[request] = self._now_s - request.at_s

    def _expire(self, task: Task) -> None:
        self._leave(task)
        self._outcome.expired += 1


def _plans(task: Task) -> Sequence[StepPlan]:
    assert isinstance(task.request, GenerateJob)
    return plans_of(task.request.sampling)
