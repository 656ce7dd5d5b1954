"""What requests may say: pydantic models of the JSON bodies and query strings, turned into queue payloads."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Annotated, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError

from models import bits
from models.bits import Indices, Mask
from models.errors import ConfigError
from models.noise import MAX_SEED
from models.sampling_config import SamplingConfig
from models.schedule import at_most
from service.errors import InvalidRequest
from service.gateway.grids import FIT_MEANING, FORMS, GridForms, Source, Strict, from_base64
from service.gateway.masks import MaskField
from service.gateway.offer import Offer
from service.gateway.refusals import refusal
from service.gateway.uploads import Fit
from service.jobs.job import Priority
from service.jobs.payloads import GenerateJob

PictureFormat = Literal["png", "jpeg", "webp"]
ReconstructFormat = Literal["png", "jpeg", "webp", "npy"]
GenerateFormat = Literal["png", "jpeg", "webp", "tokens", "npy"]
Encoding = Literal["bits", "indices", "packed", "npy"]
MaskSchedule = Literal["arccos", "cosine", "linear", "square", "root"]
GuidanceAnnealing = Literal["none", "linear", "cosine"]
GroupOrder = Literal["confidence", "halton"]

MAX_GUIDANCE_SCALE = 30
MAX_GUIDANCE_POW = 10
MIN_TEMPERATURE = 0.01  # far below it logits divided by it overflow
MAX_TEMPERATURE = 10
MAX_NOISE_TEMPERATURE = 100
MAX_DEADLINE_MS = 3_600_000
DEFAULT_DEADLINE_MS = 60_000
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
Share = Annotated[float, Field(ge=0, le=1)]


class Body(Strict):
    """Base of the JSON bodies."""

    model: ModelName | None = Field(None, description="one of GET /v1/models; the first if absent")
    deadline_ms: int = Field(
        DEFAULT_DEADLINE_MS, ge=1, le=MAX_DEADLINE_MS, description="given up when it passes"
    )


class GenerateBody(Source, Body):
    """`POST /generate`: `n` pictures of one or several classes; what is left out comes from the bundle.

    With a `mask`, a part of one picture is drawn, and the rest is kept: tokens or an image are needed then.
    """

    class_id: ClassIds | None = Field(None, description="number of a class, or a list of them")
    class_name: ClassNames | None = Field(None, description="instead of class_id: a name, or a list of them")
    n: int = Field(1, ge=1, le=_MAX_LIST, description="pictures of each class")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="picture k of a class uses seed + k; drawn if absent"
    )
    mask: MaskField | None = Field(
        None,
        description="what to draw anew, in all pictures alike: rows of 0 and 1 for each token, or a picture "
        "in base64, fitted as `fit` says, whose bright pixels mark their tokens; the other tokens are kept",
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="at most the bit groups of a picture, see GET /info; with a mask no more than groups "
        "that it marks are taken",
    )
    guidance_scale: float | None = Field(
        None, ge=0, le=MAX_GUIDANCE_SCALE, description="how strongly the class steers; 0 is not at all"
    )
    guidance_annealing: GuidanceAnnealing | None = Field(
        None, description="how the guidance scale grows over the steps"
    )
    guidance_pow: float | None = Field(
        None, gt=0, le=MAX_GUIDANCE_POW, description="with cosine annealing: the higher, the later it grows"
    )
    guidance_cutoff: float | None = Field(
        None, ge=0, le=MAX_GUIDANCE_SCALE, description="steps with a scale up to here are not guided"
    )
    guidance_interval: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = Field(
        None, description="start and end, as shares of the steps, between which steps are guided"
    )
    temperature: float | None = Field(
        None, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, description="of the draw of each group"
    )
    anneal_temperature: bool | None = Field(None, description="from 1.3 to 0.5 instead of temperature")
    noise_temperature: float | None = Field(
        None, ge=0, le=MAX_NOISE_TEMPERATURE, description="how random the order is in which groups settle"
    )
    mask_schedule: MaskSchedule | None = Field(
        None, description="how many groups are still masked after each step"
    )
    group_order: GroupOrder | None = Field(
        None, description="groups settle by confidence, or evenly spread over the picture"
    )
    format: GenerateFormat = Field("png", description="of every picture; tokens makes none, npy is pixels")
    stream: bool = Field(False, description="answer with Server-Sent Events")
    preview_every: int = Field(
        0, ge=0, le=1 << 16, description="with stream: a preview each so many steps; 0 is never"
    )
    priority: Priority = Field("interactive", description="bulk waits for interactive work")

    def job(self, offer: Offer, *, events: bool) -> GenerateJob:
        """The pictures to draw, in the order of the classes, from nothing. Raises InvalidRequest."""
        if not offer.has_generator:
            raise InvalidRequest(
                f"the bundle {offer.model} has no generator; it can tokenize and detokenize only"
            )
        if self.preview_every and not events:
            raise InvalidRequest(
                f"preview_every is {self.preview_every} without stream; previews come as events: "
                "set stream to true, or send POST /jobs and follow its events"
            )
        self._check_source()
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
            preview_every=self.preview_every,
        )

    def _check_source(self) -> None:
        if self.mask is not None and not self.has_source:
            raise InvalidRequest(
                f"mask is given without the picture it is for; add one of {', '.join(FORMS)} and image"
            )
        if self.mask is None and self.has_source:
            source = "image" if self.image is not None else self.given[0]
            raise InvalidRequest(
                f"{source} is given without a mask; add mask, which tells what of it is drawn anew"
            )

    def _sampling(self, offer: Offer) -> SamplingConfig:
        given = {name: getattr(self, name) for name in SAMPLING_FIELDS if getattr(self, name) is not None}
        if given.get("steps", 1) > offer.max_steps:
            raise InvalidRequest(f"steps is {self.steps}; allowed are 1 to {offer.max_steps}")
        if self.guidance_interval is not None:
            given["guidance_interval"] = tuple(self.guidance_interval)
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


def inset(job: GenerateJob, tokens: Indices, mask: Mask, offer: Offer) -> GenerateJob:
    """`job` on the picture of `tokens` i64 (h, w), of which only what `mask` (h, w) marks is drawn.

    A step settles a bit group at least, so that there are no more steps than groups to draw.
    """
    groups = int(mask.sum()) * offer.max_steps // mask.size
    return dataclasses.replace(
        job,
        sampling=at_most(job.sampling, groups),
        tokens=bits.pack(tokens, offer.bits),
        mask=bits.pack_mask(mask),
    )


class PictureBody(Body):
    """One picture as JSON."""

    image: str = Field(min_length=1, description="PNG, JPEG, WebP or GIF in base64")

    def upload(self) -> bytes:
        """The bytes of the picture. Raises InvalidRequest."""
        return from_base64("image", self.image)


class DetokenizeBody(GridForms, Body):
    """`POST /detokenize`: one token grid; the answer of `POST /tokenize` for one picture will do."""

    format: PictureFormat | None = Field(None, description="png unless the query string says otherwise")


class GenerateOrder(GenerateBody):
    """`POST /jobs` that draws; its events are always there to be followed."""

    kind: Literal["generate"] = Field(description="what to do")


class TokenizeOrder(PictureBody):
    """`POST /jobs` that tokenizes."""

    kind: Literal["tokenize"] = Field(description="what to do")
    fit: Fit = Field("crop", description=FIT_MEANING)


class DetokenizeOrder(DetokenizeBody):
    """`POST /jobs` that detokenizes."""

    kind: Literal["detokenize"] = Field(description="what to do")


Order = GenerateOrder | TokenizeOrder | DetokenizeOrder
ORDER: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="kind")])
GENERATE: TypeAdapter[GenerateBody] = TypeAdapter(GenerateBody)
PICTURE: TypeAdapter[PictureBody] = TypeAdapter(PictureBody)
DETOKENIZE: TypeAdapter[DetokenizeBody] = TypeAdapter(DetokenizeBody)


def parse(kind: TypeAdapter[T], body: bytes) -> T:
    """The JSON `body` as `kind`. Raises InvalidRequest: the field, what was got, what is allowed."""
    try:
        return kind.validate_json(body)
    except ValidationError as exc:
        raise InvalidRequest(refusal(exc.errors(include_url=False))) from None
