"""The section `dataset` of a recipe: where pictures come from and how they are cropped."""

from __future__ import annotations

from dataclasses import dataclass

from models.validation import require, require_positive

PUBLISHED_ASPECT_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class DatasetConfig:
    """Keys of `dataset.params` and `dataset.preprocessing` together, under the published names.

    `*_shards_path_or_url`: WebDataset .tar or Parquet files (paths, globs, {a..b} braces, URLs) or a folder
    with one sub-folder of pictures per class. `token_cache` is a folder that `maskbit data cache` wrote; a
    generator then reads tokens instead of pictures. `parts` divides the shards among processes: their number
    by default. `resolution` is in pixels; a random crop takes a share of the area of `min_scale` to 1 and,
    with `use_aspect_ratio_aug`, a width/height within `aspect_ratio`.
    """

    train_shards_path_or_url: str
    eval_shards_path_or_url: str
    resolution: int
    classes: str | None = None
    token_cache: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    shuffle_buffer_size: int = 1000
    num_workers_per_gpu: int = 1
    pin_memory: bool = False
    persistent_workers: bool = True
    parts: int | None = None
    use_random_crop: bool = True
    min_scale: float = 0.8
    use_aspect_ratio_aug: bool = True
    aspect_ratio: tuple[float, float] = PUBLISHED_ASPECT_RATIO
    interpolation: str = "bilinear"
    flip: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "resolution", "shuffle_buffer_size")
        if self.parts is not None:
            require_positive(self, "parts")
        require(
            self.interpolation in ("bilinear", "bicubic"),
            f"dataset.preprocessing.interpolation is {self.interpolation!r}; "
            "allowed are 'bilinear' and 'bicubic'",
        )
        require(
            0 < self.min_scale <= 1,
            f"dataset.preprocessing.min_scale is {self.min_scale}; allowed is 0 < min_scale <= 1",
        )
        low, high = self.aspect_ratio
        require(
            0 < low <= high,
            f"dataset.preprocessing.aspect_ratio is {self.aspect_ratio}; needed is 0 < low <= high",
        )
        require(
            self.num_workers_per_gpu >= 0,
            f"dataset.params.num_workers_per_gpu is {self.num_workers_per_gpu}; it must be at least 0",
        )

    @property
    def crop_ratio(self) -> tuple[float, float]:
        """Range of width/height of a random crop."""
        return self.aspect_ratio if self.use_aspect_ratio_aug else (1.0, 1.0)
