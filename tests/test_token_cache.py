"""The format of the cache and the stream of batches from it, on caches that are written here by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.bits import pack, split_groups, unpack
from models.bundle import file_digest
from models.config import GeneratorConfig, TokenizerConfig
from models.errors import ConfigError
from models.networks import build_tokenizer
from models.tokenizer import Tokenizer
from models.validation import from_mapping
from training.cache.batches import CacheOrder, TokenBatch, cached_batches
from training.cache.manifest import (
    BUILD_PLAN,
    CROP_SETTINGS,
    MANIFEST,
    CacheManifest,
    CachePlan,
    Part,
    cached_preprocessing,
    preprocessing_of,
)
from training.cache.token_cache import (
    as_records,
    npy_bytes,
    open_cache,
    tokenizer_digest,
    unpack_groups,
)
from training.data.config import DatasetConfig

TOKENIZER = TokenizerConfig(
    hidden_channels=8, channel_mult=(1, 2), num_resolutions=2, num_res_blocks=1, norm_groups=2, token_size=6
)
MODEL = GeneratorConfig(
    bits=6,
    hidden_dim=16,
    depth=1,
    heads=2,
    mlp_dim=32,
    codebook_splits=2,
    img_size=8,
    input_stride=2,
    nclass=40,
)
DATA = DatasetConfig("train.tar", "val.tar", resolution=8, min_scale=0.5)
SIZES = (7, 5, 0, 9)  # of one part no picture was sound
PICTURES = sum(SIZES)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return build_tokenizer(TOKENIZER)


def plan_of(tokenizer: Tokenizer, **changes: Any) -> CachePlan:
    values: dict[str, Any] = {
        "bits": 6,
        "grid": 4,
        "classes": 40,
        "crops": 3,
        "flips": "drawn",
        "preprocessing": {key: getattr(DATA, key) for key in CROP_SETTINGS},
        "tokenizer": tokenizer_digest(tokenizer),
        "tokenizer_config": asdict(TOKENIZER),
        "shards": ("train.tar",),
        "samples_per_part": 16,
        "seed": 0,
    }
    return CachePlan(**{**values, **changes})


def token_grids() -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Indices (pictures, variants, tokens) whose first token names the picture and second the variant."""
    indices = np.random.default_rng(5).integers(0, 64, (PICTURES, 3, 16))
    indices[:, :, 0] = np.arange(PICTURES)[:, None]
    indices[:, :, 1] = np.arange(3)
    return indices


@pytest.fixture
def cache(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """21 pictures of three variants in parts; picture p has class p."""
    folder = tmp_path / "cache"
    folder.mkdir()
    plan, grids = plan_of(tokenizer), token_grids()
    parts, first = [], 0
    for number, size in enumerate(SIZES):
        rows = range(first, first + size)
        file = folder / f"{number}.npy"
        file.write_bytes(npy_bytes(as_records(plan, grids[first : first + size], list(rows))))
        parts.append(Part(file.name, size + number, size, file_digest(file)))
        first += size
    (folder / MANIFEST).write_text(CacheManifest(plan, tuple(parts)).to_json())
    return folder


def take(
    cache: Path,
    tokenizer: Tokenizer,
    count: int,
    batch_size: int = 4,
    *,
    start: int = 0,
    seed: int = 3,
    rank: int = 0,
    world: int = 1,
) -> list[TokenBatch]:
    batches = cached_batches(cache, DATA, MODEL, tokenizer, batch_size, seed, start, rank=rank, world=world)
    return list(islice(batches, count))


def same(left: list[TokenBatch], right: list[TokenBatch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.groups, b.groups) and torch.equal(a.labels, b.labels)
        for a, b in zip(left, right, strict=True)
    )


@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.sampled_from([(14, 2), (18, 2), (10, 1), (24, 1), (6, 3), (18, 3)]),
)
def test_fast_unpacking_gives_what_the_packing_of_the_service_holds(
    crops: int, tokens: int, split: tuple[int, int]
) -> None:
    bits, splits = split
    indices = np.random.default_rng(tokens).integers(0, 1 << bits, (crops, tokens))
    packed = np.stack([np.frombuffer(pack(row, bits), np.uint8) for row in indices])
    assert np.array_equal(unpack_groups(packed, tokens, bits, splits), split_groups(indices, bits, splits))


def test_a_crop_of_16_by_16_tokens_of_14_bits_takes_448_bytes(tokenizer: Tokenizer) -> None:
    plan = plan_of(tokenizer, bits=14, grid=16, crops=2, flips="stored")
    assert plan.bytes_per_crop == 448
    assert plan.record.itemsize == 4 + 4 * 448
    indices = np.random.default_rng(0).integers(0, 1 << 14, (1, 4, 256))
    records = as_records(plan, indices, [39])
    assert np.array_equal(unpack(records["tokens"][0, 3].tobytes(), (256,), 14), indices[0, 3])


def test_pictures_keep_their_tokens_and_labels(cache: Path, tokenizer: Tokenizer) -> None:
    grids = token_grids()
    for batch in take(cache, tokenizer, 30):
        indices = (batch.groups << torch.tensor([0, 3])).sum(-1)
        for row, label in zip(indices.tolist(), batch.labels.tolist(), strict=True):
            assert row[0] == label
            assert row == grids[label, row[1]].tolist()


def test_each_epoch_shows_every_picture_once_in_a_new_order(cache: Path, tokenizer: Tokenizer) -> None:
    labels = torch.cat([batch.labels for batch in take(cache, tokenizer, 4 * PICTURES, 2)])
    epochs = labels.view(-1, PICTURES).tolist()
    assert all(sorted(epoch) == list(range(PICTURES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_every_variant_of_a_picture_comes_before_one_returns(cache: Path, tokenizer: Tokenizer) -> None:
    batches = take(cache, tokenizer, 6, PICTURES)
    seen = np.full((6, PICTURES), -1)
    for epoch, batch in enumerate(batches):
        seen[epoch, batch.labels] = (batch.groups[:, 1] << torch.tensor([0, 3])).sum(-1)
    for picture in seen.T:
        assert sorted(picture[:3]) == sorted(picture[3:]) == [0, 1, 2]
    assert len(set(seen[0])) == 3


@pytest.mark.parametrize("start", [1, 5, 13])
def test_a_stream_that_starts_later_gives_the_very_same_batches(
    cache: Path, tokenizer: Tokenizer, start: int
) -> None:
    assert same(take(cache, tokenizer, 9, start=start), take(cache, tokenizer, 9 + start)[start:])


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_see_together_what_one_with_the_whole_batch_sees(
    cache: Path, tokenizer: Tokenizer, world: int
) -> None:
    shares = [take(cache, tokenizer, 12, start=2, rank=rank, world=world) for rank in range(world)]
    together = [
        TokenBatch(torch.cat([b.groups for b in batch]), torch.cat([b.labels for b in batch]))
        for batch in zip(*shares, strict=True)
    ]
    assert same(together, take(cache, tokenizer, 12, 4 * world, start=2))


@pytest.mark.parametrize(
    ("size", "accumulated", "world"), [(12, 1, 1), (6, 2, 1), (4, 1, 3), (2, 3, 2), (1, 1, 12)]
)
def test_a_run_goes_on_with_other_processes_where_it_stood(
    cache: Path, tokenizer: Tokenizer, size: int, accumulated: int, world: int
) -> None:
    step = 5  # of 12 pictures each, the third epoch
    expected = torch.cat([batch.labels for batch in take(cache, tokenizer, 48, 12)])[step * 12 :]
    shares = [
        take(
            cache,
            tokenizer,
            2 * accumulated,
            size,
            start=step * accumulated,
            rank=rank,
            world=world,
        )
        for rank in range(world)
    ]
    seen = torch.cat([batch.labels for batches in zip(*shares, strict=True) for batch in batches])
    assert torch.equal(seen, expected[:24])


def test_a_batch_may_be_larger_than_the_cache(cache: Path, tokenizer: Tokenizer) -> None:
    (batch,) = take(cache, tokenizer, 1, 50)
    assert sorted(batch.labels[:42].tolist()) == sorted([*range(21), *range(21)])


def test_another_seed_gives_another_order(cache: Path, tokenizer: Tokenizer) -> None:
    assert not same(take(cache, tokenizer, 2, seed=3), take(cache, tokenizer, 2, seed=4))


def test_the_order_of_a_million_pictures_holds_few_bytes_a_picture() -> None:
    order = CacheOrder(1_300_000, 8, 1)
    pictures, variants = order.at(range(1_299_998, 1_300_002))
    assert pictures.shape == variants.shape == (4,)
    assert order.first.nbytes == 4 * 1_300_000


def test_a_digest_names_the_encoder_and_not_the_decoder(tokenizer: Tokenizer) -> None:
    other = build_tokenizer(TOKENIZER)
    other.load_state_dict(tokenizer.state_dict())
    decoder, encoder = (
        other.get_parameter("decoder.conv_in.bias"),
        other.get_parameter("encoder.conv_out.bias"),
    )
    decoder.data += 1
    assert tokenizer_digest(other) == tokenizer_digest(tokenizer)
    encoder.data[0] += 1e-6
    assert tokenizer_digest(other) != tokenizer_digest(tokenizer)
    regrouped = build_tokenizer(replace(TOKENIZER, norm_groups=4))
    regrouped.load_state_dict(tokenizer.state_dict())
    assert tokenizer_digest(regrouped) != tokenizer_digest(tokenizer)


def test_a_cache_of_another_tokenizer_is_refused_by_name(cache: Path) -> None:
    torch.manual_seed(1)
    other = build_tokenizer(TOKENIZER)
    with pytest.raises(ConfigError, match=rf"{cache} was made by another tokenizer") as caught:
        take(cache, other, 1)
    assert tokenizer_digest(other)[:12] in str(caught.value)


@pytest.mark.parametrize(
    "model", [replace(MODEL, bits=4), replace(MODEL, img_size=16), replace(MODEL, nclass=39)]
)
def test_a_cache_that_does_not_fit_the_generator_is_refused(
    cache: Path, tokenizer: Tokenizer, model: GeneratorConfig
) -> None:
    with pytest.raises(ConfigError, match="4x4 tokens of 6 bits and 40 classes; the generator needs"):
        cached_batches(cache, DATA, model, tokenizer, 4, 0, 0)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("resolution", 16, "resolution 8, the recipe has 16"),
        ("use_random_crop", False, "use_random_crop True, the recipe has False"),
        ("min_scale", 0.8, "min_scale 0.5, the recipe has 0.8"),
        ("use_aspect_ratio_aug", False, "use_aspect_ratio_aug True, the recipe has False"),
        ("aspect_ratio", (0.5, 2.0), r"aspect_ratio \(0.75, 1.33\d+\), the recipe has \(0.5, 2.0\)"),
        ("interpolation", "bicubic", "interpolation 'bilinear', the recipe has 'bicubic'"),
        ("flip", False, "flip True, the recipe has False"),
    ],
)
def test_a_cache_of_other_crops_is_refused_by_the_setting_that_differs(
    cache: Path, tokenizer: Tokenizer, key: str, value: Any, shown: str
) -> None:
    data = replace(DATA, **{key: value})
    with pytest.raises(
        ConfigError, match=rf"was made with dataset\.preprocessing\.{shown}; set it"
    ) as caught:
        cached_batches(cache, data, MODEL, tokenizer, 4, 0, 0)
    assert "\n" not in str(caught.value)


def test_crop_settings_without_effect_need_not_agree(tokenizer: Tokenizer) -> None:
    wide = {"aspect_ratio": (0.1, 10.0)}
    whole, square = {"use_random_crop": False}, {"use_aspect_ratio_aug": False}
    for changes, idle in ((whole, wide | {"min_scale": 0.1}), (whole, square), (square, wide)):
        data = replace(DATA, **changes)  # type: ignore[arg-type]
        plan = plan_of(tokenizer, preprocessing={key: getattr(data, key) for key in CROP_SETTINGS})
        stored = from_mapping(CachePlan, json.loads(json.dumps(asdict(plan))))
        for other in (data, replace(data, **idle)):
            assert preprocessing_of(other) == cached_preprocessing(stored)
    for flips, flip in (("none", False), ("drawn", True), ("stored", True)):
        assert cached_preprocessing(plan_of(tokenizer, flips=flips))["flip"] is flip


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-10] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_a_damaged_part_is_named(cache: Path, damage: Callable[[Path], None]) -> None:
    damage(cache / "1.npy")
    with pytest.raises(ConfigError, match=r"cache/1\.npy (is damaged|cannot be read)") as caught:
        open_cache(cache)
    assert "\n" not in str(caught.value)


def test_a_part_of_another_shape_is_refused(cache: Path, tokenizer: Tokenizer) -> None:
    file = cache / "1.npy"
    records = as_records(plan_of(tokenizer, crops=2), token_grids()[:5, :2], [0] * 5)
    file.write_bytes(npy_bytes(records))
    values = json.loads((cache / MANIFEST).read_text())
    values["parts"][1]["sha256"] = file_digest(file)
    (cache / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"1\.npy holds 5 records of"):
        open_cache(cache)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cache.json: "),
        ("[]", "cache.json: it must hold a JSON object"),
        ('{"plan": {}, "parts": 3}', "cache.json: parts must be a list"),
        ('{"plan": {"codes": 1}, "parts": []}', "unknown codes"),
    ],
)
def test_a_damaged_manifest_is_named(cache: Path, text: str, message: str) -> None:
    (cache / MANIFEST).write_text(text)
    with pytest.raises(ConfigError, match=message):
        open_cache(cache)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", 2, "format_version is 2; this version reads 1"),
        ("flips", "all", "flips is 'all'"),
        ("crops", 0, "crops is 0"),
    ],
)
def test_a_manifest_with_other_values_is_refused(cache: Path, key: str, value: object, message: str) -> None:
    values = json.loads((cache / MANIFEST).read_text())
    values["plan"][key] = value
    (cache / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=message):
        open_cache(cache)


def test_a_part_outside_the_folder_is_refused(cache: Path) -> None:
    values = json.loads((cache / MANIFEST).read_text())
    values["parts"][0]["file"] = "../1.npy"
    (cache / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="a plain file name is needed"):
        open_cache(cache)


def test_a_missing_and_an_unfinished_cache_are_told_apart(cache: Path) -> None:
    with pytest.raises(ConfigError, match="no token cache at"):
        open_cache(cache / "none")
    (cache / MANIFEST).rename(cache / BUILD_PLAN)
    with pytest.raises(ConfigError, match="is unfinished"):
        open_cache(cache)
