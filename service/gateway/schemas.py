"""What requests may say: pydantic models of the JSON bodies and query strings, turned into queue payloads."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import secrets
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from models import bits
from models.bits import Indices
from models.errors import ConfigError
from models.noise import MAX_SEED
from models.sampling_config import SamplingConfig
from service.errors import InvalidRequest
from service.gateway.offer import Offer
from service.gateway.refusals import refusal, shorten
from service.gateway.uploads import Fit
from service.jobs.job import Priority
from service.jobs.payloads import GenerateJob

PictureFormat = Literal["png", "jpeg", "webp"]
GenerateFormat = Literal["png", "jpeg", "webp", "tokens", "npy"]
Encoding = Literal["bits", "indices", "packed", "npy"]
MaskSchedule = Literal["arccos", "cosine", "linear", "square", "root"]
GuidanceAnnealing = Literal["none", "linear", "cosine"]
GroupOrder = Literal["confidence", "halton"]

MAX_GUIDANCE_SCALE = 30
MAX_GUIDANCE_POW = 10
MAX_TEMPERATURE = 10
MAX_NOISE_TEMPERATURE = 100
MAX_DEADLINE_MS = 3_600_000
_MAX_LIST = 1024
# A seed that is drawn stays exact in JavaScript, whose numbers are doubles.
_DRAWN_SEEDS = 1 << 53

T = TypeVar("T")


def _how_many(value: object) -> str:
    return "several" if isinstance(value, list) else "one"


ModelName = Annotated[str, Field(min_length=1, max_length=200)]
ClassId = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
ClassName = Annotated[str, Field(min_length=1, max_length=200)]
ClassIds = Annotated[
    Annotated[ClassId, Tag("one")]
    | Annotated[list[ClassId], Field(min_length=1, max_length=_MAX_LIST), Tag("several")],
    Discriminator(_how_many),
]
ClassNames = Annotated[
    Annotated[ClassName, Tag("one")]
    | Annotated[list[ClassName], Field(min_length=1, max_length=_MAX_LIST), Tag("several")],
    Discriminator(_how_many),
]
Token = Annotated[str, Field(max_length=64)]
Index = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
Grid = Annotated[list[T], Field(max_length=_MAX_LIST)]
Share = Annotated[float, Field(ge=0, le=1)]


class Body(BaseModel):
    """Base of the JSON bodies: nothing is converted, nothing unknown is let through."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    model: ModelName | None = Field(None, description="one of GET /v1/models; the first if absent")
    deadline_ms: int = Field(60_000, ge=1, le=MAX_DEADLINE_MS, description="given up when it passes")


class GenerateBody(Body):
    """`POST /generate`: `n` pictures of one or several classes; what is left out comes from the bundle."""

    class_id: ClassIds | None = None
    class_name: ClassNames | None = Field(None, description="instead of class_id")
    n: int = Field(1, ge=1, le=_MAX_LIST, description="pictures of each class")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="picture k of a class uses seed + k; drawn if absent"
    )
    steps: int | None = Field(None, ge=1, description="at most the bit groups of a picture, see GET /info")
    guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE_SCALE)
    guidance_annealing: GuidanceAnnealing | None = None
    guidance_pow: float | None = Field(None, gt=0, le=MAX_GUIDANCE_POW)
    guidance_cutoff: float | None = Field(
        None, ge=0, le=MAX_GUIDANCE_SCALE, description="steps with a scale up to here are not guided"
    )
    guidance_interval: tuple[Share, Share] | None = Field(
        None, description="start and end, as shares of the steps, between which steps are guided"
    )
    temperature: float | None = Field(None, gt=0, le=MAX_TEMPERATURE)
    anneal_temperature: bool | None = Field(None, description="from 1.3 to 0.5 instead of temperature")
    noise_temperature: float | None = Field(None, ge=0, le=MAX_NOISE_TEMPERATURE)
    mask_schedule: MaskSchedule | None = None
    group_order: GroupOrder | None = None
    format: GenerateFormat = "png"
    stream: bool = Field(False, description="answer with Server-Sent Events")
    preview_every: int = Field(
        0, ge=0, le=1 << 16, description="with stream: a preview each so many steps; 0 is never"
    )
    priority: Priority = "interactive"

    def job(self, offer: Offer, *, events: bool) -> GenerateJob:
        """The pictures to draw, in the order of the classes. Raises InvalidRequest."""
        if not offer.has_generator:
            raise InvalidRequest(
                f"the bundle {offer.model} has no generator; it can tokenize and detokenize only"
            )
        classes = self._classes(offer)
        total = len(classes) * self.n
        if total > offer.max_images:
            raise InvalidRequest(
                f"{len(classes)} classes with n = {self.n} are {total} pictures; "
                f"at most {offer.max_images} are allowed"
            )
        seed = secrets.randbelow(_DRAWN_SEEDS) if self.seed is None else self.seed
        if seed + self.n - 1 > MAX_SEED:
            raise InvalidRequest(f"seed is {seed} with n = {self.n}; seed + n - 1 may be at most {MAX_SEED}")
        return GenerateJob(
            class_ids=tuple(one for one in classes for _ in range(self.n)),
            seeds=tuple(seed + k for _ in classes for k in range(self.n)),
            sampling=self._sampling(offer),
            format=self.format,
            events=events,
            preview_every=self.preview_every if events else 0,
        )

    def _sampling(self, offer: Offer) -> SamplingConfig:
        given = {name: getattr(self, name) for name in SAMPLING_FIELDS if getattr(self, name) is not None}
        if given.get("steps", 1) > offer.max_steps:
            raise InvalidRequest(f"steps is {self.steps}; allowed are 1 to {offer.max_steps}")
        try:
            return dataclasses.replace(offer.sampling, **given)
        except ConfigError as exc:
            raise InvalidRequest(str(exc)) from None

    def _classes(self, offer: Offer) -> list[int]:
        if (self.class_id is None) == (self.class_name is None):
            got = "neither" if self.class_id is None else "both"
            raise InvalidRequest(f"exactly one of class_id and class_name is needed, got {got}")
        if self.class_name is not None:
            names = [self.class_name] if isinstance(self.class_name, str) else self.class_name
            return [offer.class_id(name) for name in names]
        ids = self.class_id if isinstance(self.class_id, list) else [self.class_id or 0]
        return [offer.check_class_id(one) for one in ids]


SAMPLING_FIELDS = (
    "steps",
    "guidance_scale",
    "guidance_annealing",
    "guidance_pow",
    "guidance_cutoff",
    "guidance_interval",
    "temperature",
    "anneal_temperature",
    "noise_temperature",
    "mask_schedule",
    "group_order",
)


class TokenizeBody(Body):
    """`POST /tokenize` as JSON: one picture in base64."""

    image: str = Field(min_length=1, description="PNG, JPEG, WebP or GIF in base64")

    def upload(self) -> bytes:
        """The bytes of the picture. Raises InvalidRequest."""
        return _from_base64("image", self.image)


class DetokenizeBody(Body):
    """`POST /detokenize`: one token grid, in exactly one of three forms."""

    tokens: Grid[Grid[Token]] | None = Field(None, description="rows of bit strings, bit 0 first")
    indices: Grid[Grid[Index]] | None = Field(None, description="rows of token indices")
    packed: str | None = Field(None, description="base64 of all bits, row by row, bit 0 first")
    format: PictureFormat | None = Field(None, description="png unless the query string says otherwise")

    def grid(self, offer: Offer) -> Indices:
        """Token indices i64 (h, w). Raises InvalidRequest or InputError."""
        given = [name for name in ("tokens", "indices", "packed") if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise InvalidRequest(f"exactly one of tokens, indices and packed is needed, got {got}")
        if self.packed is not None:
            return check_grid(bits.unpack(_from_base64("packed", self.packed), offer.grid, offer.bits), offer)
        rows: list[list[Any]] = self.tokens or self.indices or []
        height, width = offer.grid
        if len(rows) != height or any(len(row) != width for row in rows):
            widths = sorted({len(row) for row in rows})
            got = f"{len(rows)} rows of {' and '.join(map(str, widths[:3])) or 'no'} tokens"
            raise InvalidRequest(f"{given[0]} has {got}; {height} rows of {width} are needed")
        values = bits.from_strings(rows, offer.bits) if self.tokens else np.array(rows, dtype=np.int64)
        return check_grid(values, offer)


def check_grid(indices: Indices, offer: Offer) -> Indices:
    """Return `indices`; InvalidRequest unless each is a token of the bundle."""
    if int(indices.min()) < 0 or int(indices.max()) >= offer.num_codes:
        raise InvalidRequest(
            f"token indices run from {indices.min()} to {indices.max()}; "
            f"allowed are 0 to {offer.num_codes - 1}"
        )
    return indices


class GenerateOrder(GenerateBody):
    """`POST /jobs` that draws; its events are always there to be followed."""

    kind: Literal["generate"]


class TokenizeOrder(TokenizeBody):
    """`POST /jobs` that tokenizes."""

    kind: Literal["tokenize"]
    fit: Fit = "crop"


class DetokenizeOrder(DetokenizeBody):
    """`POST /jobs` that detokenizes."""

    kind: Literal["detokenize"]


Order = GenerateOrder | TokenizeOrder | DetokenizeOrder
ORDER: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="kind")])
GENERATE: TypeAdapter[GenerateBody] = TypeAdapter(GenerateBody)
TOKENIZE: TypeAdapter[TokenizeBody] = TypeAdapter(TokenizeBody)
DETOKENIZE: TypeAdapter[DetokenizeBody] = TypeAdapter(DetokenizeBody)


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelQuery(_Query):
    """Query string that names a model; a JSON body's own `model` goes before it."""

    model: ModelName | None = Field(None, description="one of GET /v1/models; the first if absent")


class TokenizeQuery(ModelQuery):
    """Query string of `POST /tokenize`."""

    encoding: Encoding = "bits"
    fit: Fit = "crop"


class DetokenizeQuery(ModelQuery):
    """Query string of `POST /detokenize`; a JSON body's own `format` goes before it."""

    format: PictureFormat = "png"


class JobQuery(_Query):
    """Query string of `GET /jobs/{id}`: how the tokens of a tokenize job are written."""

    encoding: Literal["bits", "indices", "packed"] = "bits"


class ClassesQuery(ModelQuery):
    """Query string of `GET /classes`."""

    search: str = Field("", max_length=200)


def parse(kind: TypeAdapter[T], body: bytes) -> T:
    """The JSON `body` as `kind`. Raises InvalidRequest: the field, what was got, what is allowed."""
    try:
        return kind.validate_json(body)
    except ValidationError as exc:
        raise InvalidRequest(refusal(exc.errors(include_url=False, include_context=False))) from None


def _from_base64(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InvalidRequest(f"{name} is {shorten(text)}, which is no base64 ({exc})") from None
