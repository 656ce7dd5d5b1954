import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest

from models.config import GeneratorConfig, TokenizerConfig
from models.errors import ConfigError
from models.sampling_config import SamplingConfig
from models.validation import from_mapping

Config = type[TokenizerConfig] | type[GeneratorConfig] | type[SamplingConfig]
CONFIGS: tuple[Config, ...] = (TokenizerConfig, GeneratorConfig, SamplingConfig)


@pytest.mark.parametrize("cls", CONFIGS)
def test_a_config_survives_the_way_through_json_values(cls: Config) -> None:
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(cls()).items()}
    assert from_mapping(cls, values) == cls()


@pytest.mark.parametrize("cls", CONFIGS)
def test_an_unknown_key_is_named_beside_the_known_ones(cls: Config) -> None:
    with pytest.raises(ConfigError, match=r"unknown depht, zzz; allowed are .*\w"):
        from_mapping(cls, {"zzz": 1, "depht": 2})


def test_a_config_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        SamplingConfig().steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (TokenizerConfig, "model_class", "taming2"),
        (TokenizerConfig, "quantizer_type", "lookupfree"),
        (TokenizerConfig, "hidden_channels", 0),
        (TokenizerConfig, "hidden_channels", 128.0),
        (TokenizerConfig, "hidden_channels", "128"),
        (TokenizerConfig, "num_res_blocks", True),
        (TokenizerConfig, "num_res_blocks_decoder", 0),
        (TokenizerConfig, "channel_mult", (1, 2)),
        (TokenizerConfig, "channel_mult", (1, 1, 2, 2, 0)),
        (TokenizerConfig, "channel_mult", (1, 1, 2, 2, "4")),
        (TokenizerConfig, "channel_mult", 4),
        (TokenizerConfig, "norm_groups", 48),
        (TokenizerConfig, "token_size", 25),
        (TokenizerConfig, "codebook_size", 0),
        (TokenizerConfig, "sample_with_conv", "false"),
        (TokenizerConfig, "commitment_cost", "high"),
        (TokenizerConfig, "entropy_gamma", float("nan")),
        (GeneratorConfig, "model_cls", "gpt"),
        (GeneratorConfig, "model_cls", ["bert"]),
        (GeneratorConfig, "bits", -14),
        (GeneratorConfig, "bits", 64),
        (GeneratorConfig, "codebook_splits", 3),
        (GeneratorConfig, "heads", 7),
        (GeneratorConfig, "dropout", 1.0),
        (GeneratorConfig, "dropout", -0.1),
        (GeneratorConfig, "use_prenorm", 1),
        (GeneratorConfig, "img_size", 250),
        (GeneratorConfig, "nclass", None),
        (SamplingConfig, "steps", 0),
        (SamplingConfig, "steps", 1.5),
        (SamplingConfig, "guidance_scale", -1.0),
        (SamplingConfig, "guidance_scale", float("inf")),
        (SamplingConfig, "guidance_pow", 0),
        (SamplingConfig, "temperature", 0),
        (SamplingConfig, "temperature", float("nan")),
        (SamplingConfig, "temperature", 10**400),
        (SamplingConfig, "noise_temperature", -0.5),
        (SamplingConfig, "mask_schedule", "sine"),
        (SamplingConfig, "mask_schedule", ["arccos"]),
        (SamplingConfig, "guidance_annealing", "Cosine"),
        (SamplingConfig, "anneal_temperature", 0),
    ],
)
def test_a_wrong_value_is_named(cls: Config, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        from_mapping(cls, {key: value})


def test_taming_has_a_lookup_codebook() -> None:
    with pytest.raises(ConfigError, match="'taming' has 'lookup' only"):
        TokenizerConfig(model_class="taming")
    assert TokenizerConfig(model_class="taming", quantizer_type="lookup").bits == 10


def test_whole_numbers_are_accepted_where_floats_are_meant() -> None:
    assert from_mapping(SamplingConfig, {"temperature": 1, "guidance_scale": 0}).temperature == 1


def test_derived_numbers_are_those_of_the_published_models() -> None:
    tokenizer = TokenizerConfig(token_size=14, codebook_size=4096)
    assert (tokenizer.stride, tokenizer.num_codes, tokenizer.bits) == (16, 16384, 14)
    lookup = TokenizerConfig(quantizer_type="lookup", codebook_size=1024, token_size=256)
    assert (lookup.num_codes, lookup.bits) == (1024, 10)
    generator = GeneratorConfig(bits=14)
    assert (generator.grid, generator.num_tokens, generator.group_bits, generator.group_codes) == (
        16,
        256,
        7,
        128,
    )


def test_configs_and_bundles_are_read_without_torch() -> None:
    """The gateway reads them, and it has no torch."""
    program = (
        "import sys, models.bundle, models.schedule, models.noise, models.bits; print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
