"""The bodies and answers of the OpenAI images API, as far as a class-conditional model can serve it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from pydantic import Field, TypeAdapter

from models.noise import MAX_SEED
from models.verification import Verification
from service.errors import InvalidRequest
from service.gateway.answers import Answer
from service.gateway.offer import Offer
from service.gateway.schemas import MAX_GUIDANCE_SCALE, Body, GenerateBody, PictureFormat

MAX_PARTIAL_IMAGES = 3


class ImagesBody(Body):
    """`POST /v1/images/generations`.

    What a client may send but a model without text, transparency or moderation cannot vary is accepted with
    the values that change nothing, and null is the default as it is there. `seed`, `steps` and
    `guidance_scale` go beyond OpenAI's fields.
    """

    prompt: str = Field(min_length=1, max_length=200, description="the name or the number of a class")
    n: int | None = Field(1, ge=1, le=1024)
    size: str | None = Field(
        "auto", max_length=20, description="auto, or the model's own size, such as 64x64"
    )
    response_format: Literal["b64_json"] | None = Field(
        "b64_json", description="pictures are never kept at a URL"
    )
    output_format: PictureFormat | None = "png"
    stream: bool | None = Field(None, description="answer with Server-Sent Events; needs n = 1")
    partial_images: int | None = Field(
        0, ge=0, le=MAX_PARTIAL_IMAGES, description="with stream: previews on the way"
    )
    background: Literal["auto", "opaque"] | None = "auto"
    moderation: Literal["auto", "low"] | None = "auto"
    quality: Literal["auto", "standard"] | None = "auto"
    user: str | None = Field(None, max_length=1000, description="not used")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="as in POST /generate")
    steps: int | None = Field(None, ge=1, description="as in POST /generate")
    guidance_scale: float | None = Field(
        None, ge=0, le=MAX_GUIDANCE_SCALE, description="as in POST /generate"
    )

    @property
    def file_format(self) -> PictureFormat:
        """Of the finished pictures."""
        return self.output_format or "png"

    def drawing(self, offer: Offer) -> GenerateBody:
        """The same wish as a body of `POST /generate`. Raises InvalidRequest."""
        self._check(offer)
        steps = min(self.steps or offer.sampling.steps, offer.max_steps)
        wanted = {"seed": self.seed, "steps": self.steps, "guidance_scale": self.guidance_scale}
        return GenerateBody.model_validate(
            {name: value for name, value in wanted.items() if value is not None}
            | {
                "class_id": self._class_id(offer),
                "n": self.n or 1,
                "format": self.file_format,
                "stream": bool(self.stream),
                # So many steps apart that no more previews than wanted come before the last step.
                "preview_every": -(-steps // (self.partial_images + 1)) if self.partial_images else 0,
                "deadline_ms": self.deadline_ms,
            }
        )

    def _check(self, offer: Offer) -> None:
        own_size = size_of(offer)
        if self.size not in (None, "auto", own_size):
            raise InvalidRequest(
                f"size is {self.size!r}; the model {offer.model} draws {own_size}, so allowed are auto "
                f"and {own_size}"
            )
        if self.stream and (self.n or 1) > 1:
            raise InvalidRequest(f"n is {self.n} with stream; a stream carries one picture")
        if self.partial_images and not self.stream:
            raise InvalidRequest(f"partial_images is {self.partial_images} without stream")

    def _class_id(self, offer: Offer) -> int:
        if self.prompt in offer.class_names or not self.prompt.isascii() or not self.prompt.isdecimal():
            return offer.class_id(self.prompt, "prompt")
        return offer.check_class_id(int(self.prompt), "prompt")


IMAGES: TypeAdapter[ImagesBody] = TypeAdapter(ImagesBody)


def size_of(offer: Offer) -> str:
    """The size of all pictures of a model, as OpenAI writes it."""
    return f"{offer.image_size}x{offer.image_size}"


class TokenDetails(Answer):
    """Tokens by their kind; the prompt is one class token."""

    image_tokens: int
    text_tokens: int


class TokenUsage(Answer):
    """What was read and drawn, in tokens."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, offer: Offer, pictures: int) -> TokenUsage:
        """The usage of `pictures` drawn pictures: a class token each in, a grid of tokens each out."""
        drawn = pictures * offer.grid[0] * offer.grid[1]
        return cls(
            input_tokens=pictures,
            input_tokens_details=TokenDetails(image_tokens=0, text_tokens=pictures),
            output_tokens=drawn,
            total_tokens=pictures + drawn,
        )


class ImageData(Answer):
    """One picture; `revised_prompt` is the name of its class."""

    b64_json: str
    revised_prompt: str
    seed: int


class ImagesAnswer(Answer):
    """Answer of `POST /v1/images/generations`."""

    created: int
    data: list[ImageData]
    background: Literal["opaque"]
    output_format: str
    size: str
    usage: TokenUsage


class RuntimeCard(Answer):
    """How far one runtime is from torch fp32: `passed`, `failed` or `unavailable` where it was measured.

    Shares of 1 that are equal: bits of encoded pictures; groups after a step from one and the same state (at
    the worst step), `step_drawn` of those drawn in it; and groups after all steps of pictures on their own
    way. Times are milliseconds a picture. `reason` names what is below its threshold.
    """

    runtime: str
    precision: str
    verdict: str
    device: str | None = None
    reason: str | None = None
    encode_bits: float | None = None
    decode_psnr_db: float | None = None
    step_tokens: float | None = None
    step_drawn: float | None = None
    trace_tokens: float | None = None
    logit_error: float | None = None
    encode_ms: float | None = None
    decode_ms: float | None = None
    step_ms: float | None = None


class VerificationCard(Answer):
    """What `maskbit export verify` found for this revision; `date` is in ISO 8601.

    `reference` holds the times of torch fp32 as `encode_ms`, `decode_ms` and `step_ms`.
    """

    date: str
    version: str
    pictures: int
    steps: int
    reference: dict[str, float]
    runtimes: list[RuntimeCard]

    @classmethod
    def of(cls, report: Verification) -> VerificationCard:
        """The report as far as it says nothing of the machine's files: of reasons, the missed thresholds."""
        cards = []
        for one in report.runtimes:
            found = asdict(one) | (asdict(one.numbers) if one.numbers else {})
            found["reason"] = "; ".join(one.missed()) or None
            known = {name: found[name] for name in RuntimeCard.model_fields if found.get(name) is not None}
            cards.append(RuntimeCard(**known))
        return cls(
            date=report.date,
            version=report.version,
            pictures=report.pictures,
            steps=report.steps,
            reference=dict(report.reference),
            runtimes=cards,
        )


class ModelCard(Answer):
    """One model: OpenAI's fields, then ours. `verification` is there once its runtimes were compared."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    bundle: str
    licence: str
    image_size: int
    grid: tuple[int, int]
    bits_per_token: int
    classes: int
    alive: bool
    verification: VerificationCard | None = None


class ModelList(Answer):
    """Answer of `GET /v1/models`."""

    object: Literal["list"]
    data: list[ModelCard]
