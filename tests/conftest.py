"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from models.bundle import GENERATOR_WEIGHTS, TOKENIZER_WEIGHTS, Bundle, Manifest
from models.config import GeneratorConfig, TokenizerConfig
from models.sampling_config import SamplingConfig
from tests.golden_weights import make_weights

if TYPE_CHECKING:
    # Tests of gateway files run without importing torch.
    from torch import Tensor, nn

    from models.generator import LfqBert
    from models.tokenizer import ConvTokenizer

# One thread a process: it must be said before the plugins below import torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = [
    "tests.redis_fixtures",
    "tests.gateway_fixtures",
    "tests.service_fixtures",
    "tests.page_fixtures",
    "tests.export_fixtures",
    "tests.triton_fixtures",
]

# It builds images for minutes, with programs that few machines have.
collect_ignore = [] if os.environ.get("MASKBIT_BUILD_IMAGES") == "1" else ["test_images_built.py"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With MASKBIT_REQUIRE_ALL=1 a skip is a failure; only what needs a GPU may be left out."""
    report = yield
    required = os.environ.get("MASKBIT_REQUIRE_ALL") == "1" and item.get_closest_marker("gpu") is None
    if required and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but MASKBIT_REQUIRE_ALL=1 demands every test: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the project's shared data: MASKBIT_SHARED_DIR, else `shared` beside the checkout."""
    folder = Path(os.environ.get("MASKBIT_SHARED_DIR") or Path(__file__).resolve().parents[2] / "shared")
    if folder.is_dir():
        return folder
    if os.environ.get("MASKBIT_REQUIRE_ALL") == "1":
        pytest.fail(f"there is no folder {folder}, and MASKBIT_REQUIRE_ALL=1 demands it")
    pytest.skip(f"there is no folder {folder}")


def _weights(network: nn.Module, seed: int) -> dict[str, Tensor]:
    import torch

    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    return {key: torch.from_numpy(value) for key, value in make_weights(shapes, seed).items()}


@pytest.fixture(scope="session")
def tiny_manifest() -> Manifest:
    """16x16 pixels, 8x8 tokens of 6 bits in 2 groups, 5 classes."""
    return Manifest(
        name="tiny",
        image_size=16,
        tokenizer=TokenizerConfig(
            hidden_channels=16,
            channel_mult=(1, 2),
            num_resolutions=2,
            num_res_blocks=1,
            norm_groups=4,
            token_size=6,
        ),
        generator=GeneratorConfig(
            bits=6,
            hidden_dim=32,
            depth=2,
            heads=4,
            mlp_dim=64,
            codebook_splits=2,
            img_size=16,
            input_stride=2,
            nclass=5,
        ),
        sampling=SamplingConfig(steps=8, guidance_scale=3.0, noise_temperature=4.0),
        class_names=("apple", "banana", "cherry", "lemon", "strawberry"),
        licence="Apache-2.0",
        provenance={"weights": "random"},
    )


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_manifest: Manifest) -> Bundle:
    """A bundle with random weights whose logits are well spread; read it, but do not change its files."""
    from models.bundle_writer import write_bundle
    from models.generator import LfqBert
    from models.tokenizer import ConvTokenizer

    assert tiny_manifest.generator is not None
    weights = {
        TOKENIZER_WEIGHTS: _weights(ConvTokenizer(tiny_manifest.tokenizer), seed=1),
        GENERATOR_WEIGHTS: _weights(LfqBert(tiny_manifest.generator), seed=2),
    }
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", tiny_manifest, weights)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_bundle: Bundle) -> ConvTokenizer:
    """The tiny bundle's tokenizer as a plain module."""
    from safetensors.torch import load_file

    from models.tokenizer import ConvTokenizer

    network = ConvTokenizer(tiny_bundle.manifest.tokenizer).eval()
    network.load_state_dict(load_file(tiny_bundle.path / TOKENIZER_WEIGHTS))
    return network


@pytest.fixture(scope="session")
def tiny_generator(tiny_bundle: Bundle) -> LfqBert:
    """The tiny bundle's generator as a plain module."""
    from safetensors.torch import load_file

    from models.generator import LfqBert

    assert tiny_bundle.manifest.generator is not None
    network = LfqBert(tiny_bundle.manifest.generator).eval()
    network.load_state_dict(load_file(tiny_bundle.path / GENERATOR_WEIGHTS))
    return network
