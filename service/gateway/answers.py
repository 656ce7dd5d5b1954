"""What the service answers: pydantic models that build the JSON and describe it in /openapi.json.

Only the fields that were given are written.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from service.jobs.job import CANCELLED, DONE, ERROR, EXPIRED, QUEUED, RUNNING

# A list with bounds and not a tuple: many readers of OpenAPI know no `prefixItems`.
GridSize = Annotated[list[int], Field(min_length=2, max_length=2)]

STATE_WORDS = {
    QUEUED: "queued",
    RUNNING: "running",
    DONE: "done",
    ERROR: "failed",
    CANCELLED: "cancelled",
    EXPIRED: "expired",
}


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(extra="forbid")

    def response(self, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """This answer as HTTP."""
        text = self.model_dump_json(exclude_unset=True)
        return Response(text, status, headers, media_type="application/json")


class Usage(Answer):
    """The work behind an answer; times in milliseconds, steps and network rows for each drawn picture."""

    steps: int
    forward_passes: int
    queue_ms: float
    compute_ms: float


class ImageAnswer(Answer):
    """One picture: a file in base64, or its tokens for the format `tokens`; if drawn, class and seed."""

    class_id: int | None = None
    class_name: str | None = None
    seed: int | None = None
    format: str
    b64: str | None = None
    indices: list[list[int]] | None = None
    tokens: list[list[str]] | None = None
    psnr_db: float | None = None


class PicturesAnswer(Answer):
    """Answer of generate and detokenize."""

    images: list[ImageAnswer]
    model: str
    bundle: str
    usage: Usage
    id: str


class TokensPictureAnswer(Answer):
    """Answer of edit and reconstruct: the tokens, and the picture of them unless only tokens are wanted.

    `id` is the job that made the picture; `usage` covers all jobs of the request. `psnr_db` of a
    reconstruction is null where it equals the picture that came in.
    """

    images: list[ImageAnswer]
    tokens: list[list[str]]
    indices: list[list[int]]
    model: str
    bundle: str
    usage: Usage
    id: str | None = None


class TokensAnswer(Answer):
    """Answer of tokenize for one picture; bit 0 of a token comes first."""

    model: str
    bundle: str
    grid: GridSize
    bits_per_token: int
    bit_order: str
    tokens: list[list[str]] | None = None
    indices: list[list[int]] | None = None
    packed: str | None = None


class TokensListAnswer(Answer):
    """Answer of tokenize for several pictures."""

    results: list[TokensAnswer]


class ErrorDetail(Answer):
    """What went wrong, for programs (`code`) and for people (`message`)."""

    code: str
    message: str
    request_id: str


class ErrorAnswer(Answer):
    """The body of every error."""

    error: ErrorDetail


class JobAnswer(Answer):
    """A job: queued, running, done, failed, cancelled or expired.

    `position` is the number of jobs ahead, of which 100 are counted; `eta_ms`, if known, the milliseconds
    until it may be done at best.
    """

    id: str
    kind: str
    state: str
    position: int | None = None
    eta_ms: int | None = None
    result: PicturesAnswer | TokensAnswer | TokensListAnswer | None = None
    error: ErrorDetail | None = None


class ClassAnswer(Answer):
    """One class of the model."""

    id: int
    name: str


class ClassesAnswer(Answer):
    """The classes of the model."""

    classes: list[ClassAnswer]


class InfoAnswer(Answer):
    """What is served; `runtime` is that of the living workers."""

    model: str
    bundle: str
    image_size: int
    grid: GridSize
    bits: int
    runtime: str | None
    has_generator: bool
    defaults: dict[str, bool | int | float | str | list[float]]
    limits: dict[str, Any]
    licence: str


class LiveAnswer(Answer):
    """The process is up."""

    alive: bool


class WorkerAnswer(Answer):
    """A living worker as it announces itself, with its speed as far as it is measured.

    `passed_over` says of each runtime that would be faster why the worker does not have it.
    """

    model_config = ConfigDict(extra="allow")

    id: str = ""
    bundle: str = ""
    runtime: str = ""
    precision: str = ""
    device: str = ""
    slots: int = 0
    passed_over: list[str] = []


class ReadyAnswer(Answer):
    """Requests can be served; `models` says which models have a worker.

    `workers` describes them, where API keys are set to callers with a key only.
    """

    ready: bool
    models: dict[str, bool]
    workers: list[WorkerAnswer] = []
