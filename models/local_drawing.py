"""Pictures drawn in this process into PNG files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from models.bundle import Bundle
from models.drawing import draw, generator_of
from models.errors import InputError
from models.runtime.base import Runtime
from models.sampling_config import SamplingConfig
from models.schedule import plan_steps
from models.whole_file import write_whole

MAX_PICTURES = 256  # of one batch, which has to fit in memory


def sampling_of(bundle: Bundle, options: dict[str, Any]) -> SamplingConfig:
    """The bundle's sampling parameters with `options` put over them. Raises ConfigError, InputError."""
    config = generator_of(bundle.manifest)
    sampling = replace(bundle.manifest.sampling, **options)
    plan_steps(sampling, config.num_groups)
    return sampling


def draw_files(
    runtime: Runtime,
    bundle: Bundle,
    sampling: SamplingConfig,
    labels: Sequence[int],
    seeds: Sequence[int],
    out: Path,
    on_step: Callable[[int], None],
) -> Iterator[Path]:
    """Draw one picture per label and seed in one batch; yields the files `<class>-<seed>.png` in `out`."""
    from PIL import Image

    grids = draw(runtime, bundle.manifest, sampling, labels, seeds, on_step=on_step)
    for label, seed, picture in zip(labels, seeds, runtime.decode(grids), strict=True):
        path = out / f"{file_stem(bundle.manifest.class_names[label])}-{seed}.png"
        file = BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        write_whole(path, file.getvalue())
        yield path


def file_stem(class_name: str) -> str:
    """A class name as part of a file's name."""
    return class_name.replace("/", "_")


def make_folder(path: Path) -> None:
    """Make a folder unless it is there; InputError when it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InputError(f"cannot write to {path}: {exc.strerror}") from exc
