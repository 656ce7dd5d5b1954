"""The page at `/` with its assets, and `/docs`: the API as plain HTML, without a request to anywhere else."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from service.gateway import openapi
from service.gateway.docs_page import docs_page
from service.gateway.responses import json_response

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parent.parent / "static"


def assets() -> StaticFiles:
    """The application that serves `/static`."""
    return StaticFiles(directory=_FOLDER)


@router.get("/")
async def page() -> Response:
    """The page."""
    return FileResponse(_FOLDER / "index.html")


@router.get("/openapi.json")
async def document(request: Request) -> Response:
    """The machine-readable description of the API."""
    return json_response(_described(request.app))


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The documentation of the API."""
    return HTMLResponse(docs_page(_described(request.app)))


def _described(app: FastAPI) -> dict[str, Any]:
    document = app.openapi()
    return openapi.with_keys(document) if app.state.desk.keys.required else document
