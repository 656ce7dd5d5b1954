"""What a training recipe may say: frozen dataclasses, one per section of the published configs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.config import (
    MASK_SCHEDULES,
    GeneratorConfig,
    SamplingConfig,
    TokenizerConfig,
    require,
    require_positive,
)

MAX_SEED = 2**31 - 1  # seed and step share the 64 bits of torch's generator


@dataclass(frozen=True)
class ExperimentConfig:
    """Where a run writes and how often; `*_every` count optimizer steps."""

    name: str
    output_dir: str = "runs"
    log_every: int = 50
    save_every: int = 1000
    sample_every: int = 1000
    eval_every: int = 1000

    def __post_init__(self) -> None:
        require(
            self.name not in ("", ".", "..") and "/" not in self.name,
            f"experiment.name is {self.name!r}; a plain folder name is needed",
        )
        require_positive(self, "log_every", "save_every", "sample_every", "eval_every")


@dataclass(frozen=True)
class DatasetConfig:
    """WebDataset shards (paths, globs or {a..b} braces) and the augmentation of training pictures.

    `crop_scale` is the share of the area, `crop_ratio` the range of width/height that a random crop takes.
    """

    train_shards: str
    eval_shards: str
    image_size: int
    classes: str | None = None
    crop_scale: tuple[float, float] = (0.8, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    interpolation: str = "bilinear"
    flip: bool = True
    shuffle_buffer: int = 5000
    workers: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "image_size", "shuffle_buffer")
        require(
            self.interpolation in ("bilinear", "bicubic"),
            f"dataset.interpolation is {self.interpolation!r}; allowed are 'bilinear' and 'bicubic'",
        )
        low, high = self.crop_scale
        require(
            0 < low <= high <= 1, f"dataset.crop_scale is {self.crop_scale}; needed is 0 < low <= high <= 1"
        )
        require(
            0 < self.crop_ratio[0] <= self.crop_ratio[1],
            f"dataset.crop_ratio is {self.crop_ratio}; needed is 0 < low <= high",
        )
        require(self.workers >= 0, f"dataset.workers is {self.workers}; it must be at least 0")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-4
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        require(
            self.learning_rate > 0, f"optimizer.learning_rate is {self.learning_rate}; it must be above 0"
        )
        for name in ("beta1", "beta2"):
            beta = getattr(self, name)
            require(0 <= beta < 1, f"optimizer.{name} is {beta}; allowed is 0 <= {name} < 1")
        require(
            self.weight_decay >= 0, f"optimizer.weight_decay is {self.weight_decay}; it must be at least 0"
        )
        require(self.epsilon > 0, f"optimizer.epsilon is {self.epsilon}; it must be above 0")


@dataclass(frozen=True)
class SchedulerConfig:
    """`cosine_with_minimum`: linear warm-up over `warmup_steps`, then a cosine down to a tenth."""

    scheduler: str = "cosine_with_minimum"
    warmup_steps: int = 5000

    def __post_init__(self) -> None:
        require(
            self.scheduler == "cosine_with_minimum",
            f"lr_scheduler.scheduler is {self.scheduler!r}; allowed is 'cosine_with_minimum'",
        )
        require(
            self.warmup_steps >= 0, f"lr_scheduler.warmup_steps is {self.warmup_steps}; it must be at least 0"
        )


@dataclass(frozen=True)
class LoopConfig:
    """The section `training`: length, batch, precision."""

    max_train_steps: int
    per_gpu_batch_size: int
    mixed_precision: str = "no"
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 42
    device: str = "auto"

    def __post_init__(self) -> None:
        require_positive(self, "max_train_steps", "per_gpu_batch_size")
        require(
            self.mixed_precision in ("no", "bf16"),
            f"training.mixed_precision is {self.mixed_precision!r}; allowed are 'no' and 'bf16'",
        )
        require(self.max_grad_norm > 0, f"training.max_grad_norm is {self.max_grad_norm}; it must be above 0")
        require(0 <= self.ema_decay < 1, f"training.ema_decay is {self.ema_decay}; allowed is 0 <= decay < 1")
        require(0 <= self.seed <= MAX_SEED, f"training.seed is {self.seed}; allowed are 0 to {MAX_SEED}")


@dataclass(frozen=True)
class TokenizerLossConfig:
    """Generator-side loss of stage I."""

    reconstruction_loss: str = "l2"
    reconstruction_weight: float = 4.0
    quantizer_weight: float = 1.0
    entropy_annealing_steps: int = 2000
    entropy_annealing_factor: float = 2.0

    def __post_init__(self) -> None:
        require(
            self.reconstruction_loss in ("l1", "l2"),
            f"losses.reconstruction_loss is {self.reconstruction_loss!r}; allowed are 'l1' and 'l2'",
        )
        require(
            self.entropy_annealing_steps >= 0,
            f"losses.entropy_annealing_steps is {self.entropy_annealing_steps}; it must be at least 0",
        )


@dataclass(frozen=True)
class GeneratorLossConfig:
    """Masked-token loss of stage II."""

    label_smoothing: float = 0.1
    class_dropout: float = 0.1
    mask_schedule: str = "arccos"
    sum_splits: bool = False

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "class_dropout"):
            share = getattr(self, name)
            require(0 <= share < 1, f"losses.{name} is {share}; allowed is 0 <= {name} < 1")
        require(
            self.mask_schedule in MASK_SCHEDULES,
            f"losses.mask_schedule is {self.mask_schedule!r}; allowed are {', '.join(MASK_SCHEDULES)}",
        )


@dataclass(frozen=True)
class Recipe:
    """What the three kinds of training run share."""

    experiment: ExperimentConfig
    dataset: DatasetConfig
    optimizer: OptimizerConfig
    lr_scheduler: SchedulerConfig
    training: LoopConfig

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as stored in checkpoints."""
        return asdict(self)

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.experiment.output_dir) / self.experiment.name


@dataclass(frozen=True)
class TokenizerRecipe(Recipe):
    """Stage I."""

    model: TokenizerConfig
    losses: TokenizerLossConfig = field(default_factory=TokenizerLossConfig)

    def __post_init__(self) -> None:
        size, stride = self.dataset.image_size, self.model.stride
        require(
            size % stride == 0, f"dataset.image_size is {size}; the tokenizer needs a multiple of {stride}"
        )


@dataclass(frozen=True)
class GeneratorRecipe(Recipe):
    """Stage II; `tokenizer` is the bundle whose frozen tokenizer makes the tokens."""

    tokenizer: str
    model: GeneratorConfig
    sampling: SamplingConfig
    losses: GeneratorLossConfig = field(default_factory=GeneratorLossConfig)

    def __post_init__(self) -> None:
        require(
            bool(self.tokenizer), "model.tokenizer is missing; it names the bundle of a trained tokenizer"
        )


@dataclass(frozen=True)
class ClassifierConfig:
    """A small residual network that names the class of a picture; widths in channels."""

    widths: tuple[int, ...] = (32, 64, 128)
    num_classes: int = 1000

    def __post_init__(self) -> None:
        require_positive(self, "num_classes")
        require(
            all(w >= 8 and w % 8 == 0 for w in self.widths), f"model.widths is {self.widths}; multiples of 8"
        )


@dataclass(frozen=True)
class ClassifierRecipe(Recipe):
    """The judge and perceptual network."""

    model: ClassifierConfig
