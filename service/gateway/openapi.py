"""Parts of /openapi.json that FastAPI cannot infer, since the routes read their bodies themselves."""

from typing import Any

from pydantic import TypeAdapter

from service.gateway.answers import ErrorAnswer

_MEANINGS = {
    404: "unknown",
    408: "the body did not come in time",
    409: "cancelled",
    410: "the result has expired",
    413: "too many bytes or pixels",
    415: "a type that is not accepted",
    422: "not as specified",
    500: "the job failed",
    503: "the queue is full, no worker is alive, or the service shuts down; see Retry-After",
    504: "the deadline has passed",
}
_POST = (408, 409, 413, 415, 422, 500, 503, 504)

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
    """Further content types of a 200 answer."""
    return {one: {"schema": {"type": "string", "format": "binary"}} for one in types}


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
