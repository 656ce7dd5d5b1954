"""A recipe: everything that one training run is told, as frozen values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.config import GeneratorConfig, TokenizerConfig
from models.sampling_config import SamplingConfig
from models.validation import require, require_positive
from training.config import ExperimentConfig, LoopConfig, OptimizerConfig, SchedulerConfig
from training.data.config import DatasetConfig
from training.losses.config import DiscriminatorConfig, GeneratorLossConfig, TokenizerLossConfig


@dataclass(frozen=True)
class Recipe:
    """What the three kinds of training run share."""

    experiment: ExperimentConfig
    dataset: DatasetConfig
    optimizer: OptimizerConfig
    lr_scheduler: SchedulerConfig
    training: LoopConfig

    def __post_init__(self) -> None:
        given, rate = self.lr_scheduler.learning_rate, self.optimizer.learning_rate
        require(
            given is None or given == rate,
            f"lr_scheduler.params.learning_rate is {given}; "
            f"it must be optimizer.params.learning_rate, {rate}",
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as stored in checkpoints."""
        return asdict(self)

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.experiment.output_dir) / self.experiment.name


def _refuse_useless(kind: str, **settings: object) -> None:
    """Raise ConfigError for one of the `settings`, named section__key, that is given and changes nothing."""
    for key, value in settings.items():
        require(not value, f"{key.replace('__', '.')} is {value!r}; training a {kind} makes no use of it")


@dataclass(frozen=True)
class TokenizerRecipe(Recipe):
    """Stage I; without a discriminator there is no adversarial loss."""

    model: TokenizerConfig
    discriminator: DiscriminatorConfig | None = None
    losses: TokenizerLossConfig = field(default_factory=TokenizerLossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_useless("tokenizer", dataset__token_cache=self.dataset.token_cache)
        size, stride = self.dataset.resolution, self.model.stride
        require(
            size % stride == 0,
            f"dataset.preprocessing.resolution is {size}; the tokenizer needs a multiple of {stride}",
        )
        require(
            self.model.model_class != "taming",
            "model.vq_model.model_class is 'taming', which can be evaluated and imported, but not trained",
        )


@dataclass(frozen=True)
class GeneratorRecipe(Recipe):
    """Stage II, on the frozen `tokenizer` whose weights `experiment.vqgan_checkpoint` names."""

    tokenizer: TokenizerConfig
    model: GeneratorConfig
    sampling: SamplingConfig
    losses: GeneratorLossConfig = field(default_factory=GeneratorLossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_useless("generator", training__decoder_only=self.training.decoder_only)
        require(
            bool(self.experiment.vqgan_checkpoint),
            "experiment.vqgan_checkpoint is missing; "
            "it names the bundle or the weights of a trained tokenizer",
        )


@dataclass(frozen=True)
class ClassifierConfig:
    """A small residual network that names the class of a picture; widths in channels."""

    widths: tuple[int, ...] = (32, 64, 128)
    num_classes: int = 1000

    def __post_init__(self) -> None:
        require_positive(self, "num_classes")
        require(
            bool(self.widths) and all(w >= 8 and w % 8 == 0 for w in self.widths),
            f"model.widths is {self.widths}; needed is at least one width, each a multiple of 8",
        )


@dataclass(frozen=True)
class ClassifierRecipe(Recipe):
    """The network that judges pictures and may serve as a perceptual loss."""

    model: ClassifierConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_useless(
            "classifier",
            training__decoder_only=self.training.decoder_only,
            dataset__token_cache=self.dataset.token_cache,
            experiment__init_checkpoint=self.experiment.init_checkpoint,
        )
