"""The published configuration files: one text for each stage, and in what its files differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VQ_MODEL = """
  vq_model: {{model_class: "vqgan+", quantizer_type: "{quantizer_type}", codebook_size: {codebook_size},
    token_size: {token_size}, commitment_cost: 0.25, entropy_loss_weight: {entropy_loss_weight},
    entropy_loss_temperature: 0.01, entropy_gamma: 1.0, num_channels: 3, hidden_channels: 128,
    channel_mult: [1,1,2,2,4], num_resolutions: 5, num_res_blocks: 2, sample_with_conv: True}}"""
SHARDS = """
  params:
    train_shards_path_or_url: "DATA_PATH/imagenet_shards/train/imagenet-train-{{0000..0252}}.tar"
    eval_shards_path_or_url: "DATA_PATH/imagenet_shards/val/imagenet-val-{{0000..0009}}.tar"
    shuffle_buffer_size: 1000
    num_workers_per_gpu: 8
    pin_memory: True
    persistent_workers: True"""
SCHEDULE = """
lr_scheduler:
  scheduler: "cosine_with_minimum"
  params: {{learning_rate: "${{optimizer.params.learning_rate}}", warmup_steps: 5_000}}
training: {{gradient_accumulation_steps: 1, mixed_precision: "no", enable_tf32: True, use_ema: True, seed: 42,
  max_train_steps: 1_350_000, overfit_batch: False, overfit_batch_num: 1, max_grad_norm: 1.0,"""

TOKENIZER_FILE = (
    """
experiment: {{project: "MaskBit", name: "{name}", max_train_examples: 1_281_167, save_every: 20_000,
  eval_every: 20_000, generate_every: 2000, log_every: 50, log_grad_norm_every: 100_000,
  logger: "tensorboard", resume: True, sync_to_hdfs: True, init_checkpoint: ""}}
model:"""
    + VQ_MODEL
    + """
  discriminator: {{name: "VQGAN+Discriminator", num_channels: 3, num_stages: 4, hidden_channels: 128,
    blur_resample: True, blur_kernel_size: 4}}
losses:
  quantizer_weight: 1.0
  perceptual_loss: "resnet50"
  perceptual_weight: 0.1
  perceptual_loss_on_logits: True
  reconstruction_loss: "l2"
  reconstruction_weight: 4.0
  discriminator_start: 20_000
  discriminator_loss: "hinge"
  discriminator_factor: 1.0
  discriminator_weight: 0.02
  discriminator_gradient_penalty: "none"
  discriminator_penalty_cost: 10.0
  lecam_regularization_weight: 0.001
  entropy_annealing_steps: 2000
  entropy_annealing_factor: {entropy_annealing_factor}
dataset:"""
    + SHARDS
    + """
  preprocessing: {{resolution: 256, use_aspect_ratio_aug: True, use_random_crop: True, min_scale: 0.8,
    interpolation: "bilinear"}}
optimizer:
  name: adamw
  params: {{learning_rate: 1e-4, discriminator_learning_rate: 1e-4, scale_lr: False, beta1: 0.9,
    beta2: 0.999, weight_decay: 1e-4, epsilon: 1e-8}}"""
    + SCHEDULE
    + """
  per_gpu_batch_size: 16, num_generated_images: 2}}
"""
)

GENERATOR_FILE = (
    """
experiment: {{project: "MaskBit", name: "{name}", max_train_examples: 1_281_167, save_every: 100_000,
  eval_every: 100_000, generate_every: 10_000, log_every: 50, log_grad_norm_every: 100_000,
  logger: "tensorboard", resume: True,
  vqgan_checkpoint: "MODEL_PATH/maskbit_tokenizer_{token_size}bit.bin"}}
model:"""
    + VQ_MODEL
    + """
  mlm_model: {{model_cls: "lfq_bert", hidden_dim: 1024, depth: 24, heads: 16, mlp_dim: 4096, dropout: 0.1,
    guidance_scale: {guidance_scale}, guidance_annealing: "cosine", num_steps: {num_steps},
    train_mask_schedule_strategy: "arccos", gen_mask_schedule_strategy: "arccos", softmax_temperature: 1.0,
    randomize_temperature: {randomize_temperature}, class_label_dropout: 0.1, scale_pow: {scale_pow},
    use_sampling_annealing: False, codebook_splits: 2, use_prenorm: False}}
losses:
  mlm: {{label_smoothing: 0.1, sum_splits: False}}
dataset:"""
    + SHARDS
    + """
  preprocessing: {{resolution: 256, use_aspect_ratio_aug: False, use_random_crop: True, min_scale: 0.8,
    interpolation: "bicubic"}}
optimizer:
  name: adamw
  params: {{learning_rate: 1e-4, beta1: 0.9, beta2: 0.96, weight_decay: 0.045, epsilon: 1e-8}}"""
    + SCHEDULE
    + """
  per_gpu_batch_size: 32, num_generated_images: 4}}
"""
)

LOOKUP_FREE = {"quantizer_type": "lookup-free", "entropy_loss_weight": 0.02, "entropy_annealing_factor": 2.0}
LOOKUP = {"quantizer_type": "lookup", "entropy_loss_weight": 0.0, "entropy_annealing_factor": 0.0}
# codebook_size is stale in three of the lookup-free ones, and two files share the name of a run
TOKENIZERS: dict[str, dict[str, Any]] = {
    "maskbit_tokenizer_10bit": {**LOOKUP_FREE, "token_size": 10, "codebook_size": 1024},
    "maskbit_tokenizer_12bit": {**LOOKUP_FREE, "token_size": 12, "codebook_size": 4096},
    "maskbit_tokenizer_14bit": {**LOOKUP_FREE, "token_size": 14, "codebook_size": 4096},
    "maskbit_tokenizer_16bit": {**LOOKUP_FREE, "token_size": 16, "codebook_size": 4096},
    "maskbit_tokenizer_18bit": {**LOOKUP_FREE, "token_size": 18, "codebook_size": 4096},
    "vqgan_plus_10bit": {**LOOKUP, "token_size": 256, "codebook_size": 1024},
    "vqgan_plus_12bit": {**LOOKUP, "token_size": 64, "codebook_size": 4096, "name": "vqgan_plus_10bit"},
}
# name -> bits, guidance_scale, randomize_temperature, scale_pow, num_steps
GENERATORS: dict[str, tuple[int, float, float, float, int]] = {
    "maskbit_generator_10bit": (10, 6.4, 10.5, 2.5, 64),
    "maskbit_generator_12bit": (12, 7.1, 8.2, 3.0, 64),
    "maskbit_generator_14bit": (14, 7.1, 7.8, 3.0, 64),
    "maskbit_generator_14bit_128steps": (14, 7.1, 9.0, 3.0, 128),
    "maskbit_generator_14bit_256steps": (14, 5.8, 10.3, 3.0, 256),
    "maskbit_generator_16bit": (16, 6.5, 7.5, 2.5, 64),
    "maskbit_generator_18bit": (18, 5.7, 8.5, 2.5, 64),
}


def write_published(folder: Path, name: str) -> str:
    """Write the published file `name` to `folder`; returns its path."""
    if name in TOKENIZERS:
        text = TOKENIZER_FILE.format(**{"name": name, **TOKENIZERS[name]})
    else:
        bits, guidance_scale, randomize_temperature, scale_pow, num_steps = GENERATORS[name]
        text = GENERATOR_FILE.format(
            name=name,
            **LOOKUP_FREE,
            token_size=bits,
            codebook_size=1 << bits,
            guidance_scale=guidance_scale,
            randomize_temperature=randomize_temperature,
            scale_pow=scale_pow,
            num_steps=num_steps,
        )
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)
