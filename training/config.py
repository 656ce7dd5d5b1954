"""The sections of a recipe that every kind of training shares, under the published names."""

from __future__ import annotations

from dataclasses import dataclass

from models.validation import require, require_positive

MAX_SEED = 2**31 - 1  # seed and step share the 64 bits of torch's generator


@dataclass(frozen=True)
class ExperimentConfig:
    """Where a run writes and how often; `*_every` count optimizer steps.

    `max_train_examples` is the size of the training set, for the epoch in reports. `init_checkpoint` gives
    weights to start from: a file of weights, a bundle, or a run folder. `vqgan_checkpoint` is the tokenizer
    of a generator: a bundle, or a weights file that `model.vq_model` describes. `project` and `sync_to_hdfs`
    belong to the published files and change nothing here.
    """

    name: str
    project: str = "MaskBit"
    output_dir: str = "runs"
    max_train_examples: int | None = None
    log_every: int = 50
    log_grad_norm_every: int = 1000
    save_every: int = 1000
    generate_every: int = 1000
    eval_every: int = 1000
    logger: str = "tensorboard"
    resume: bool = False
    sync_to_hdfs: bool = False
    init_checkpoint: str = ""
    vqgan_checkpoint: str = ""

    def __post_init__(self) -> None:
        require(
            self.name not in ("", ".", "..") and "/" not in self.name,
            f"experiment.name is {self.name!r}; a plain folder name is needed",
        )
        require_positive(
            self, "log_every", "log_grad_norm_every", "save_every", "generate_every", "eval_every"
        )
        if self.max_train_examples is not None:
            require_positive(self, "max_train_examples")
        require(
            self.logger == "tensorboard",
            f"experiment.logger is {self.logger!r}; allowed is 'tensorboard'",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. `scale_lr` multiplies both rates by the pictures of one optimizer step, over all processes."""

    name: str = "adamw"
    learning_rate: float = 1e-4
    discriminator_learning_rate: float | None = None
    scale_lr: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-4
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        require(self.name == "adamw", f"optimizer.name is {self.name!r}; allowed is 'adamw'")
        for name in ("learning_rate", "discriminator_learning_rate", "epsilon"):
            value = getattr(self, name)
            require(value is None or value > 0, f"optimizer.params.{name} is {value}; it must be above 0")
        for name in ("beta1", "beta2"):
            beta = getattr(self, name)
            require(0 <= beta < 1, f"optimizer.params.{name} is {beta}; allowed is 0 <= {name} < 1")
        require(
            self.weight_decay >= 0,
            f"optimizer.params.weight_decay is {self.weight_decay}; it must be at least 0",
        )


@dataclass(frozen=True)
class SchedulerConfig:
    """`cosine_with_minimum`: linear warm-up over `warmup_steps`, then a cosine down to a tenth.

    `learning_rate`, where it is given, repeats that of the optimizer, as the published files do.
    """

    scheduler: str = "cosine_with_minimum"
    learning_rate: float | None = None
    warmup_steps: int = 5000

    def __post_init__(self) -> None:
        require(
            self.scheduler == "cosine_with_minimum",
            f"lr_scheduler.scheduler is {self.scheduler!r}; allowed is 'cosine_with_minimum'",
        )
        require(
            self.warmup_steps >= 0,
            f"lr_scheduler.params.warmup_steps is {self.warmup_steps}; it must be at least 0",
        )


@dataclass(frozen=True)
class LoopConfig:
    """The section `training`: length, batch, precision.

    `overfit_batch` repeats the first `overfit_batch_num` batches for ever, to see whether a network learns at
    all. `num_generated_images` is the number of pictures in a sample grid. `decoder_only` (stage I) freezes
    encoder and quantizer, so that tokens stay what they are.
    """

    max_train_steps: int
    per_gpu_batch_size: int
    gradient_accumulation_steps: int = 1
    mixed_precision: str = "no"
    enable_tf32: bool = True
    compile: bool = False
    activation_checkpointing: bool = False
    decoder_only: bool = False
    use_ema: bool = True
    ema_decay: float = 0.999
    max_grad_norm: float = 1.0
    seed: int = 42
    overfit_batch: bool = False
    overfit_batch_num: int = 1
    num_generated_images: int = 16
    device: str = "auto"

    def __post_init__(self) -> None:
        require_positive(
            self,
            "max_train_steps",
            "per_gpu_batch_size",
            "gradient_accumulation_steps",
            "overfit_batch_num",
            "num_generated_images",
        )
        require(
            self.mixed_precision in ("no", "bf16"),
            f"training.mixed_precision is {self.mixed_precision!r}; allowed are 'no' and 'bf16'",
        )
        require(self.max_grad_norm > 0, f"training.max_grad_norm is {self.max_grad_norm}; it must be above 0")
        require(0 <= self.ema_decay < 1, f"training.ema_decay is {self.ema_decay}; allowed is 0 <= decay < 1")
        require(0 <= self.seed <= MAX_SEED, f"training.seed is {self.seed}; allowed are 0 to {MAX_SEED}")
        require(
            self.device in ("auto", "cpu", "cuda"),
            f"training.device is {self.device!r}; allowed are 'auto', 'cpu' and 'cuda'",
        )
