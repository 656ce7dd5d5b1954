"""A route that FastAPI describes and has no other part in."""

from collections.abc import Callable
from typing import Any

from fastapi.routing import APIRoute


class PlainRoute(APIRoute):
    """Hands the request to an endpoint that takes nothing else: dependencies cost a tenth of a ms."""

    def get_route_handler(self) -> Callable[..., Any]:
        """The endpoint itself."""
        return self.endpoint
