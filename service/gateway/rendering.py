"""Finished jobs -> answers."""

import base64
from urllib.parse import quote

from starlette.responses import Response

from models import bits
from models.bits import Indices
from service.errors import JobFailed
from service.gateway.answers import (
    ImageAnswer,
    PicturesAnswer,
    TokensAnswer,
    TokensListAnswer,
    TokensPictureAnswer,
    Usage,
)
from service.gateway.offer import Offer
from service.jobs.job import JobView
from service.jobs.payloads import PICTURE_FORMATS, Pictures, TokenGrids, Tokens


def pictures_of(view: JobView) -> Pictures:
    """The result of a done generate or detokenize job."""
    return Pictures.unpack(_result(view))


def tokens_of(view: JobView) -> Tokens:
    """The result of a done tokenize job."""
    return Tokens.unpack(_result(view))


def made_by(result: Pictures | Tokens, offer: Offer) -> str:
    """The bundle whose weights made it."""
    return result.bundle or offer.bundle


def usage_of(view: JobView, pictures: Pictures) -> Usage:
    """What the pictures took."""
    queue_ms = max(0, view.started_ms - view.created_ms)
    return Usage(
        steps=pictures.steps,
        forward_passes=pictures.forward_passes,
        queue_ms=queue_ms,
        compute_ms=round(pictures.compute_ms, 3),
    )


def pictures_answer(view: JobView, pictures: Pictures, offer: Offer) -> PicturesAnswer:
    """The answer of generate and detokenize."""
    images = [image_answer(pictures, index, offer) for index in range(len(pictures.files))]
    usage, bundle = usage_of(view, pictures), made_by(pictures, offer)
    return PicturesAnswer(images=images, model=offer.model, bundle=bundle, usage=usage, id=view.id)


def image_answer(pictures: Pictures, index: int, offer: Offer) -> ImageAnswer:
    """Picture `index`."""
    fields: dict[str, object] = {}
    if pictures.class_ids:
        class_id = pictures.class_ids[index]
        name = offer.class_names[class_id]
        fields = {"class_id": class_id, "class_name": name, "seed": pictures.seeds[index]}
    fields["format"] = pictures.format
    data = pictures.files[index]
    if pictures.format == "tokens":
        grid = TokenGrids.unpack(data).array()[0]
        fields |= {"indices": grid.tolist(), "tokens": bits.to_strings(grid, offer.bits)}
    else:
        fields["b64"] = base64.b64encode(data).decode()
    # Every value is our own; validating megabytes of base64 again would only cost time.
    return ImageAnswer.model_construct(**fields)  # type: ignore[arg-type]


def wants_picture(accept: str, file_format: str) -> bool:
    """Whether an Accept header asks for the picture itself."""
    ranges = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return file_format in PICTURE_FORMATS and bool(ranges & {"image/*", f"image/{file_format}"})


def picture_response(pictures: Pictures, job_id: str, offer: Offer) -> Response:
    """The only picture of `pictures` itself, its seed and class in headers."""
    headers = {"X-Job-ID": job_id, "X-Bundle": quote(made_by(pictures, offer), safe="@ ")}
    if pictures.class_ids:
        class_id = pictures.class_ids[0]
        # Percent-encoded: headers hold no more than ASCII safely.
        name = quote(offer.class_names[class_id], safe=" ,'()")
        headers |= {"X-Seed": str(pictures.seeds[0]), "X-Class-ID": str(class_id), "X-Class-Name": name}
    return Response(pictures.files[0], headers=headers, media_type=f"image/{pictures.format}")


def pictures_response(view: JobView, accept: str, offer: Offer) -> Response:
    """What a done job of generate or detokenize is answered with, for the request's Accept header."""
    pictures = pictures_of(view)
    if len(pictures.files) == 1 and wants_picture(accept, pictures.format):
        return picture_response(pictures, view.id, offer)
    return pictures_answer(view, pictures, offer).response()


def tokens_picture_answer(
    images: list[ImageAnswer],
    grid: Indices,
    usage: Usage,
    offer: Offer,
    bundle: str,
    job_id: str | None = None,
) -> TokensPictureAnswer:
    """The answer of edit and reconstruct, with the tokens `grid` i64 (h, w); `bundle` made the images."""
    answer = TokensPictureAnswer.model_construct(
        images=images,
        tokens=bits.to_strings(grid, offer.bits),
        indices=grid.tolist(),
        model=offer.model,
        bundle=bundle,
        usage=usage,
    )
    if job_id is not None:
        answer.id = job_id
    return answer


def tokens_answer(tokens: Tokens, encoding: str, offer: Offer) -> TokensAnswer | TokensListAnswer:
    """The answer of tokenize: of one picture, or a list of several."""
    bundle = made_by(tokens, offer)
    answers = [_grid_answer(grid, encoding, offer, bundle) for grid in tokens.array()]
    return answers[0] if len(answers) == 1 else TokensListAnswer(results=answers)


def _grid_answer(grid: Indices, encoding: str, offer: Offer, bundle: str) -> TokensAnswer:
    fields: dict[str, object] = {
        "model": offer.model,
        "bundle": bundle,
        "grid": list(grid.shape),
        "bits_per_token": offer.bits,
        "bit_order": "lsb-first",
    }
    if encoding == "packed":
        fields["packed"] = base64.b64encode(bits.pack(grid, offer.bits)).decode()
    else:
        fields["indices"] = grid.tolist()
    if encoding == "bits":
        fields["tokens"] = bits.to_strings(grid, offer.bits)
    return TokensAnswer.model_construct(**fields)  # type: ignore[arg-type]


def _result(view: JobView) -> bytes:
    if view.result is None:
        raise JobFailed(f"job {view.id} is done, but its result is gone")
    return view.result
