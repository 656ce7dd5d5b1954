"""Error answers: one shape for all of them, the framework's own included."""

import json
import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Mount

from models.errors import InputError
from service.errors import (
    DeadlineUnmeetable,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    ServiceError,
    Unavailable,
)
from service.gateway.refusals import refusal
from service.jobs.job import CANCELLED, ERROR, EXPIRED, JobView

_RETRY_S = 1.0
_FRAMEWORK_CODES = {404: "not_found", 405: "method_not_allowed", 400: "bad_request"}


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(to_json(content), status, headers, media_type="application/json")


def error_body(code: str, message: str, request_id: str) -> dict[str, dict[str, str]]:
    """The body of every error."""
    return {"error": {"code": code, "message": message, "request_id": request_id}}


def error_response(error: ServiceError, request_id: str) -> Response:
    """The answer that an error of ours becomes."""
    headers = retry_header(error)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response(error_body(error.code, error.message, request_id), error.status, headers)


def retry_header(error: ServiceError) -> dict[str, str]:
    """Retry-After in whole seconds, when the error says when."""
    if error.retry_after_s is None:
        return {}
    return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}


def request_id_of(request: Request) -> str:
    """The id that the envelope gave to this request."""
    return str(request.scope["state"]["request_id"])


def job_error(view: JobView) -> ServiceError:
    """Why a job did not end well; the code of a worker's error chooses its class."""
    message = view.error_message or "the job failed"
    if view.state == CANCELLED:
        return JobCancelled(message)
    code = "deadline_passed" if view.state == EXPIRED else view.error_code
    assert view.state in (ERROR, EXPIRED)
    kind = _BY_CODE.get(code or "", JobFailed)
    return kind(message, retry_after_s=_RETRY_S) if kind is Unavailable else kind(message)


def _all_errors() -> dict[str, type[ServiceError]]:
    return {kind.code: kind for kind in ServiceError.__subclasses__()}


_BY_CODE = _all_errors()


def install(app: FastAPI) -> None:
    """Make every error of `app` an answer of the one shape."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(InputError, _input_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    turned_away = error.status in (429, 503) or isinstance(error, DeadlineUnmeetable)
    # Whoever asks whether we are ready wants no work done.
    if turned_away and request.url.path != "/readyz":
        request.app.state.desk.metrics.shed(error)
    return error_response(error, request_id_of(request))


async def _input_error(request: Request, error: Exception) -> Response:
    return error_response(InvalidRequest(str(error)), request_id_of(request))


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(InvalidRequest(refusal(error.errors())), request_id_of(request))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _FRAMEWORK_CODES.get(error.status_code, "http_error")
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = _allowed(request)
    body = error_body(code, _sentence(request, error, headers), request_id_of(request))
    return json_response(body, error.status_code, headers)


def _allowed(request: Request) -> str:
    """The methods of all routes at this path: the framework knows those of the first one only."""
    scopes = ({**request.scope, "method": method} for method in ("DELETE", "GET", "PATCH", "POST", "PUT"))
    routes = [route for route in request.app.router.routes if not isinstance(route, Mount)]
    found = [
        scope["method"] for scope in scopes if any(one.matches(scope)[0] is Match.FULL for one in routes)
    ]
    # Only the assets are mounted.
    found = found or ["GET"]
    return ", ".join([*found, *(["HEAD"] if "GET" in found else [])])


def _sentence(request: Request, error: HTTPException, headers: dict[str, str]) -> str:
    path = json.dumps(request.url.path[:80])
    if error.status_code == 405:
        return f"{request.method} is not possible for {path}; allowed is {headers['Allow']}"
    if error.status_code == 404:
        return f"there is nothing at {path}; GET /openapi.json lists what there is"
    return str(error.detail)
