"""What a finished drawing says about itself, so that any gateway can answer for it."""

from dataclasses import dataclass

from service.payloads import Pictures


@dataclass(frozen=True)
class Drawing(Pictures):
    """Result of generate and detokenize.

    `format` is that of every file; a `tokens` file is a TokenGrids payload of one grid, an `npy` file holds
    the pixels. `class_ids` and `seeds` are those of the job, one per file; both are empty for detokenize.
    """

    format: str
    class_ids: tuple[int, ...]
    seeds: tuple[int, ...]
