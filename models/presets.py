"""The published models by name, with the scores that their authors report (SPEC section 3).

All are for 256x256 pixels of ImageNet. A preset states what differs from the defaults of the configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from models.config import GeneratorConfig, TokenizerConfig
from models.errors import ConfigError
from models.published import PublishedModel
from models.sampling_config import SamplingConfig


@dataclass(frozen=True)
class Preset:
    """A model and its published `scores`.

    Their keys are those of TOKENIZER_SCORES for a tokenizer, measured on the 50,000 validation pictures
    (`psnr` in dB, `codebook_usage` as a share), and `fid` for a generator.
    """

    model: PublishedModel
    scores: Mapping[str, float]


def _bit_tokenizer(bits: int) -> TokenizerConfig:
    return TokenizerConfig(token_size=bits, codebook_size=1 << bits)


def _lookup_tokenizer(codebook_size: int, token_size: int) -> TokenizerConfig:
    return TokenizerConfig(
        quantizer_type="lookup",
        codebook_size=codebook_size,
        token_size=token_size,
        entropy_loss_weight=0.0,
    )


MASKGIT = TokenizerConfig(
    model_class="maskgit", quantizer_type="lookup", token_size=256, sample_with_conv=False
)
TAMING = TokenizerConfig(model_class="taming", quantizer_type="lookup", token_size=256)

TOKENIZER_SCORES = ("rfid", "inception_score", "psnr", "ssim", "codebook_usage")
# name -> configuration and scores. The released 10-bit VQGAN+ is that of the paper; of the retrained one only
# the scores are published.
TOKENIZERS = {
    "vqgan_plus_10bit": (_lookup_tokenizer(1024, 256), (1.67, 186.5, 20.9, 0.53, 1.0)),
    "vqgan_plus_10bit_retrained": (_lookup_tokenizer(1024, 256), (1.52, 182.4, 21.1, 0.54, 1.0)),
    "vqgan_plus_12bit": (_lookup_tokenizer(4096, 64), (1.39, 193.9, 21.0, 0.55, 1.0)),
    "maskbit_tokenizer_10bit": (_bit_tokenizer(10), (1.76, 177.6, 20.8, 0.53, 1.0)),
    "maskbit_tokenizer_12bit": (_bit_tokenizer(12), (1.52, 184.3, 21.2, 0.55, 1.0)),
    "maskbit_tokenizer_14bit": (_bit_tokenizer(14), (1.37, 190.3, 21.5, 0.56, 1.0)),
    "maskbit_tokenizer_16bit": (_bit_tokenizer(16), (1.29, 193.6, 21.8, 0.58, 1.0)),
    "maskbit_tokenizer_18bit": (_bit_tokenizer(18), (1.16, 197.8, 22.0, 0.59, 0.5)),
    "taming_vqgan_tokenizer": (TAMING, (7.96, 115.9, 20.18, 0.52, 1.0)),
    "maskgit_tokenizer": (MASKGIT, (1.96, 178.3, 18.6, 0.47, 0.45)),
}

# name -> bits, steps, guidance scale, noise temperature, guidance power; FID
GENERATORS = {
    "maskbit_generator_10bit": (10, 64, 6.4, 10.5, 2.5, 1.68),
    "maskbit_generator_12bit": (12, 64, 7.1, 8.2, 3.0, 1.65),
    "maskbit_generator_14bit": (14, 64, 7.1, 7.8, 3.0, 1.62),
    "maskbit_generator_14bit_128steps": (14, 128, 7.1, 9.0, 3.0, 1.56),
    "maskbit_generator_14bit_256steps": (14, 256, 5.8, 10.3, 3.0, 1.52),
    "maskbit_generator_16bit": (16, 64, 6.5, 7.5, 2.5, 1.64),
    "maskbit_generator_18bit": (18, 64, 5.7, 8.5, 2.5, 1.67),
}
NAMES = (*TOKENIZERS, *GENERATORS)


def find_preset(name: str) -> Preset:
    """The preset called `name`; ConfigError that tells the names that look like it, or all."""
    if name in TOKENIZERS:
        config, scores = TOKENIZERS[name]
        return Preset(PublishedModel(name, config), dict(zip(TOKENIZER_SCORES, scores, strict=True)))
    if name not in GENERATORS:
        near = get_close_matches(name, NAMES, n=3)
        raise ConfigError(
            f"no preset {name[:80]!r}; {'did you mean' if near else 'there are'} "
            f"{', '.join(near or NAMES)}{'?' if near else ''}"
        )
    bits, steps, guidance_scale, noise_temperature, guidance_pow, fid = GENERATORS[name]
    sampling = SamplingConfig(
        steps=steps,
        guidance_scale=guidance_scale,
        noise_temperature=noise_temperature,
        guidance_pow=guidance_pow,
    )
    model = PublishedModel(name, _bit_tokenizer(bits), GeneratorConfig(bits=bits), sampling)
    return Preset(model, {"fid": fid})
