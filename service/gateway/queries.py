"""What query strings may say."""

from __future__ import annotations

from typing import Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from service.errors import InvalidRequest
from service.gateway.grids import FIT_MEANING
from service.gateway.refusals import shorten
from service.gateway.schemas import Encoding, ModelName, PictureFormat, ReconstructFormat
from service.gateway.uploads import Fit


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def check_no_query(request: Request) -> None:
    """For a path whose body says everything: InvalidRequest that names the first parameter of a query."""
    if request.scope["query_string"]:
        for name in request.query_params:
            path = request.url.path
            raise InvalidRequest(
                f"the query parameter {shorten(name)} is not known; {path} takes none, "
                "only the fields of its body"
            )


class ModelQuery(_Query):
    """Query string that names a model; a JSON body's own `model` goes before it."""

    model: ModelName | None = Field(None, description="one of GET /v1/models; the first if absent")


class TokenizeQuery(ModelQuery):
    """Query string of `POST /tokenize`."""

    encoding: Encoding = Field(
        "bits",
        description="of the tokens: bit strings and indices, indices, base64 of the bits, a NumPy file",
    )
    fit: Fit = Field("crop", description=FIT_MEANING)


class ReconstructQuery(ModelQuery):
    """Query string of `POST /reconstruct`."""

    format: ReconstructFormat = Field("png", description="of the picture; npy is pixels")
    fit: Fit = Field("crop", description=FIT_MEANING)


class DetokenizeQuery(ModelQuery):
    """Query string of `POST /detokenize`; a JSON body's own `format` goes before it."""

    format: PictureFormat = Field("png", description="of the picture")


class JobQuery(_Query):
    """Query string of `GET /jobs/{id}`."""

    encoding: Literal["bits", "indices", "packed"] = Field(
        "bits", description="of the tokens of a tokenize job, as in POST /tokenize"
    )


class ClassesQuery(ModelQuery):
    """Query string of `GET /classes`."""

    search: str = Field("", max_length=200, description="a part of the names, in any case")
