"""A large set of pictures in a folder: what it shall hold, what is there, and what is left to draw."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.errors import InputError
from models.local_drawing import file_stem, make_folder
from models.whole_file import write_whole

PLAN_FILE = "set.json"


@dataclass(frozen=True)
class SetPlan:
    """`per_class` pictures of each class, with the seeds from `seed` on, of the weights `bundle`.

    `options` are the fields of `POST /generate` that were given; the rest comes from the bundle.
    """

    bundle: str
    seed: int
    per_class: int
    options: dict[str, Any]


@dataclass(frozen=True)
class Portion:
    """One request: pictures of one class with consecutive seeds."""

    class_id: int
    seed: int
    count: int

    def body(self, plan: SetPlan, model: str) -> dict[str, Any]:
        """The body of `POST /generate`: in the background, and for as long as a job may take."""
        wish = {"class_id": self.class_id, "seed": self.seed, "n": self.count, "model": model}
        return {**plan.options, **wish, "priority": "bulk", "deadline_ms": 3_600_000}


class PictureSet:
    """The files `<class id>-<class name>/<seed>.png` of a folder; a file there is complete."""

    def __init__(self, folder: Path, plan: SetPlan, class_ids: Sequence[int], names: Sequence[str]) -> None:
        self.folder = folder
        self.plan = plan
        self.class_ids = tuple(dict.fromkeys(class_ids))
        self._names = names

    def __len__(self) -> int:
        return len(self.class_ids) * self.plan.per_class

    def begin(self) -> None:
        """Make the folder and write the plan down. Raises InputError when the folder has another one."""
        make_folder(self.folder)
        path = self.folder / PLAN_FILE
        if known := read_plan(self.folder):
            _check_same(path, known, self.plan)
        write_whole(path, (json.dumps(asdict(self.plan), indent=2) + "\n").encode())
        for class_id in self.class_ids:
            make_folder(self._class_folder(class_id))

    def missing(self, portion_size: int) -> Iterator[Portion]:
        """What is left to draw, class after class, in portions of up to `portion_size` pictures."""
        for class_id in self.class_ids:
            first, count = 0, 0
            for seed in range(self.plan.seed, self.plan.seed + self.plan.per_class):
                wanted = not self._path(class_id, seed).exists()
                if count and (not wanted or count == portion_size):
                    yield Portion(class_id, first, count)
                    count = 0
                if wanted:
                    first = first if count else seed
                    count += 1
            if count:
                yield Portion(class_id, first, count)

    def save(self, answer: dict[str, Any]) -> None:
        """Write the pictures of an answer of `POST /generate`.

        Raises InputError when other weights drew them, ConfigError when the disk does not take them.
        """
        if answer["bundle"] != self.plan.bundle:
            raise InputError(
                f"the service draws with {answer['bundle']} now, this set was begun with {self.plan.bundle}; "
                "choose another folder"
            )
        for image in answer["images"]:
            path = self._path(int(image["class_id"]), int(image["seed"]))
            write_whole(path, base64.b64decode(image["b64"]))

    def _path(self, class_id: int, seed: int) -> Path:
        return self._class_folder(class_id) / f"{seed}.png"

    def _class_folder(self, class_id: int) -> Path:
        return self.folder / f"{class_id:03d}-{file_stem(self._names[class_id])}"


def read_plan(folder: Path) -> SetPlan | None:
    """The plan that a folder was begun with, None for a new one. Raises InputError."""
    path = folder / PLAN_FILE
    try:
        return SetPlan(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as exc:
        raise InputError(f"{path} cannot be read ({exc}); choose another folder") from exc


def _check_same(path: Path, known: SetPlan, wanted: SetPlan) -> None:
    for name in ("bundle", "seed", "options"):
        before, now = getattr(known, name), getattr(wanted, name)
        # Compared as they are written: JSON knows no tuples.
        if json.dumps(before, sort_keys=True) != json.dumps(now, sort_keys=True):
            raise InputError(
                f"{path} says that this set was begun with {name} {before!r}, now it is {now!r}; "
                "choose another folder, or the same settings to go on"
            )
