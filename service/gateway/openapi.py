"""Parts of /openapi.json that FastAPI cannot infer, since the routes read their bodies themselves."""

from typing import Any

from pydantic import TypeAdapter

from service.gateway.answers import ErrorAnswer
from service.gateway.gate import is_open
from service.jobs.payloads import PICTURE_FORMATS

_MEANINGS = {
    401: "no API key, or one that is not known",
    404: "unknown",
    408: "the body did not come in time",
    409: "cancelled",
    410: "the result has expired",
    413: "too many bytes or pixels",
    415: "a type that is not accepted",
    422: "not as specified",
    429: "a limit of the caller: requests, images of the day, unfinished jobs; see Retry-After",
    500: "the job failed",
    503: "the queue is full, no worker is alive, or the service shuts down; see Retry-After",
    504: "the deadline has passed",
}
_POST = (408, 409, 413, 415, 422, 429, 500, 503, 504)
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_TEXT = {"type": "string"}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "text/plain": _TEXT,
    "text/event-stream": {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "event": _TEXT,
            "data": {**_TEXT, "contentMediaType": "application/json"},
        },
        "required": ["event", "data"],
    },
}

Responses = dict[int | str, dict[str, Any]]


def errors(*codes: int) -> Responses:
    """The error answers of a route."""
    return {code: {"model": ErrorAnswer, "description": _MEANINGS[code]} for code in codes}


def post_errors() -> Responses:
    """The error answers of every route that takes work in."""
    return errors(*_POST)


def answer(
    code: int, model: Any, description: str = "OK", content: dict[str, Any] | None = None
) -> Responses:
    """The answer of a route when all went well."""
    described = {"description": description, "content": content or {}}
    return {code: described if model is None else {"model": model, **described}}


def media(*types: str) -> dict[str, Any]:
    """Contents that are no JSON: bytes, text, or events, of which the schema describes each one."""
    return {one: {"schema": _SCHEMAS.get(one, {"type": "string", "format": "binary"})} for one in types}


PICTURES = media(*(f"image/{one}" for one in PICTURE_FORMATS))
"""The pictures themselves, as content of an answer."""


def body(model: TypeAdapter[Any] | None, *raw_types: str) -> dict[str, Any]:
    """The request body of a route: JSON of `model`, or bytes of one of the `raw_types`."""
    content = media(*raw_types)
    if model is not None:
        content["application/json"] = {"schema": _inlined(model.json_schema())}
    return {"requestBody": {"required": True, "content": content}}


def multipart() -> dict[str, Any]:
    """The content of a form with files."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    schema = {"type": "object", "properties": {"file": files}, "required": ["file"]}
    return {"multipart/form-data": {"schema": schema}}


def with_keys(document: dict[str, Any]) -> dict[str, Any]:
    """The document of a service that has API keys: which routes need one, and what happens without."""
    schema = {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}
    refusals = {
        str(code): {"description": _MEANINGS[code], "content": {"application/json": schema}}
        for code in (401, 429)
    }
    security: dict[str, Any] = {"security": [{name: []} for name in _SCHEMES]}
    paths = {
        path: methods
        if is_open(path)
        else {
            method: {**one, **security, "responses": {**one["responses"], **refusals}}
            for method, one in methods.items()
        }
        for path, methods in document["paths"].items()
    }
    components = {**document["components"], "securitySchemes": _SCHEMES}
    return {**document, "paths": paths, "components": components}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without `$defs`, which have no place inside an OpenAPI document."""
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rpartition("/")[2]])
        return {key: resolve(value) for key, value in node.items() if key != "discriminator"}

    return dict(resolve(schema))
