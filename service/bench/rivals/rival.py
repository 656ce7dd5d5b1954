"""Other servers of models that answer the same no-op job, each at a pinned version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from models.errors import ConfigError

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Rival:
    """How to install and start one server; `command` gets the folder of its programs and a port."""

    name: str
    version: str
    requirement: str
    command: Callable[[Path, int], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}"


def _python(script: str) -> Callable[[Path, int], list[str]]:
    return lambda programs, port: [str(programs / "python"), str(HERE / script), str(port)]


def _bentoml(programs: Path, port: int) -> list[str]:
    place = ["--host", "127.0.0.1", "--port", str(port), "--working-dir", str(HERE)]
    return [str(programs / "bentoml"), "serve", "bentoml_server:NoOp", *place]


RIVALS = {
    rival.name: rival
    for rival in (
        Rival("litserve", "0.2.19", "litserve==0.2.19", _python("litserve_server.py")),
        Rival("bentoml", "1.4.39", "bentoml==1.4.39", _bentoml, {"BENTOML_DO_NOT_TRACK": "True"}),
        Rival(
            "ray", "2.60.0", "ray[serve]==2.60.0", _python("ray_server.py"), {"RAY_USAGE_STATS_ENABLED": "0"}
        ),
    )
}


def rivals_named(names: str) -> list[Rival]:
    """The rivals of a list with commas, empty for none. Raises ConfigError that names those there are."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in RIVALS:
            raise ConfigError(f"there is no rival {name!r}; allowed are {', '.join(RIVALS)}")
    return [RIVALS[name] for name in wanted]
