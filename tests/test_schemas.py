import base64
import difflib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from models import bits
from models.bundle import Manifest
from models.classes import imagenet_names
from models.errors import InputError
from models.sampling_config import SamplingConfig
from models.validation import from_mapping
from service.errors import InvalidRequest
from service.gateway.edits import EDIT
from service.gateway.npy import read_npy, write_npy
from service.gateway.offer import Offer
from service.gateway.refusals import shorten
from service.gateway.rendering import tokens_answer
from service.gateway.schemas import (
    DETOKENIZE,
    GENERATE,
    ORDER,
    PICTURE,
    SAMPLING_FIELDS,
    DetokenizeBody,
    GenerateOrder,
    TokenizeOrder,
    parse,
)
from service.jobs.payloads import GenerateJob, Tokens
from service.settings import Settings

MAX_SEED = 2**63 - 1


@pytest.fixture(scope="module")
def offer(tiny_manifest: Manifest) -> Offer:
    return Offer.of(tiny_manifest, "0123456789ab", 0, Settings(max_images=6))


def job_of(offer: Offer, **fields: Any) -> GenerateJob:
    return parse(GENERATE, json.dumps(fields).encode()).job(offer, events=False)


def refusal_of(offer: Offer, **fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        job_of(offer, **fields)
    return caught.value.message


def test_what_a_request_leaves_out_comes_from_the_bundle(offer: Offer, tiny_manifest: Manifest) -> None:
    job = job_of(offer, class_id=2)
    assert job.sampling == tiny_manifest.sampling
    assert (job.class_ids, job.format) == ((2,), "png")


def test_image_k_of_a_class_uses_the_seed_plus_k(offer: Offer) -> None:
    job = job_of(offer, class_name=["lemon", "apple"], n=3, seed=10)
    assert job.class_ids == (3, 3, 3, 0, 0, 0)
    assert job.seeds == (10, 11, 12, 10, 11, 12)


def test_the_last_seed_is_accepted_and_a_sum_beyond_it_is_not(offer: Offer) -> None:
    assert job_of(offer, class_id=0, seed=MAX_SEED).seeds == (MAX_SEED,)
    assert job_of(offer, class_id=0, n=2, seed=MAX_SEED - 1).seeds == (MAX_SEED - 1, MAX_SEED)
    assert str(MAX_SEED) in refusal_of(offer, class_id=0, n=2, seed=MAX_SEED)


def test_a_drawn_seed_is_exact_in_javascript(offer: Offer) -> None:
    seeds = [job_of(offer, class_id=0).seeds[0] for _ in range(200)]
    assert len(set(seeds)) == 200
    assert all(0 <= seed < 2**53 and float(seed) == seed for seed in seeds)


def test_given_sampling_fields_replace_the_bundles(offer: Offer) -> None:
    given_fields = {
        "steps": 128,
        "guidance_scale": 0,
        "guidance_annealing": "none",
        "guidance_pow": 10,
        "temperature": 0.5,
        "noise_temperature": 0,
        "mask_schedule": "root",
        "guidance_cutoff": 0.25,
        "guidance_interval": [0.25, 1],
        "anneal_temperature": True,
        "group_order": "halton",
    }
    sampling = job_of(offer, class_id=0, **given_fields).sampling
    assert sampling == from_mapping(SamplingConfig, given_fields)
    assert set(given_fields) == set(SAMPLING_FIELDS) == {field.name for field in fields(SamplingConfig)}


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({}, ["class_id", "class_name", "neither"]),
        ({"class_id": 0, "class_name": "apple"}, ["both"]),
        ({"class_id": 5}, ["class_id is 5", "0 to 4"]),
        ({"class_id": -1}, ["class_id is -1"]),
        ({"class_id": []}, ["class_id is a list of 0", "at least 1"]),
        ({"class_id": [0] * 1025}, ["class_id is a list of 1025", "at most 1024"]),
        ({"class_id": [0, "x"]}, ["class_id[1] is 'x'", "integer"]),
        ({"class_id": True}, ["class_id is true"]),
        ({"class_id": "0"}, ["class_id is '0'"]),
        ({"class_name": "stawberry"}, ["'stawberry'", "'strawberry'"]),
        ({"class_name": "zzzzzz"}, ["GET /classes"]),
        ({"class_id": 0, "n": 0}, ["n is 0"]),
        ({"class_id": 0, "n": 7}, ["7 pictures", "at most 6"]),
        ({"class_id": [0, 1], "n": 4}, ["8 pictures", "at most 6"]),
        ({"class_id": 0, "steps": 129}, ["steps is 129", "1 to 128"]),
        ({"class_id": 0, "steps": 1.5}, ["steps is 1.5"]),
        ({"class_id": 0, "guidance_scale": 30.1}, ["guidance_scale is 30.1", "30"]),
        ({"class_id": 0, "guidance_pow": 0}, ["guidance_pow is 0"]),
        ({"class_id": 0, "temperature": 0}, ["temperature is 0"]),
        ({"class_id": 0, "temperature": 1e-300}, ["temperature is 1e-300", "0.01"]),
        ({"class_id": 0, "noise_temperature": -1}, ["noise_temperature is -1"]),
        ({"class_id": 0, "mask_schedule": "cubic"}, ["'cubic'", "arccos"]),
        ({"class_id": 0, "group_order": "spiral"}, ["'spiral'", "halton"]),
        ({"class_id": 0, "guidance_cutoff": -1}, ["guidance_cutoff is -1"]),
        ({"class_id": 0, "guidance_cutoff": 31}, ["guidance_cutoff is 31", "30"]),
        ({"class_id": 0, "guidance_interval": 0.5}, ["guidance_interval is 0.5"]),
        ({"class_id": 0, "guidance_interval": [0.5]}, ["guidance_interval is a list of 1", "at least 2"]),
        ({"class_id": 0, "guidance_interval": [0, 1.1]}, ["guidance_interval[1] is 1.1"]),
        (
            {"class_id": 0, "guidance_interval": [0, 0.5, 1]},
            ["guidance_interval is a list of 3", "at most 2"],
        ),
        (
            {"class_id": 0, "guidance_interval": [0.6, 0.4]},
            ["guidance_interval is [0.6, 0.4]", "start < end"],
        ),
        ({"class_id": 0, "anneal_temperature": 1}, ["anneal_temperature is 1"]),
        ({"class_id": 0, "guidance_annealing": 1}, ["guidance_annealing is 1"]),
        ({"class_id": 0, "format": "gif"}, ["'gif'", "webp"]),
        ({"class_id": 0, "seed": -1}, ["seed is -1"]),
        ({"class_id": 0, "seed": 2**63}, ["seed is 9223372036854775808"]),
        ({"class_id": 0, "seed": 10**400}, ["seed is a number of about"]),
        ({"class_id": 0, "deadline_ms": 0}, ["deadline_ms is 0"]),
        ({"class_id": 0, "deadline_ms": 3_600_001}, ["deadline_ms is 3600001"]),
        ({"class_id": 0, "priority": "vip"}, ["'vip'", "bulk"]),
        ({"class_id": 0, "preview_every": 4}, ["preview_every is 4 without stream", "POST /jobs"]),
        ({"class_id": 0, "mask": []}, ["mask is given without", "indices", "image"]),
        ({"class_id": 0, "mask": 7}, ["mask is 7"]),
        ({"class_id": 0, "mask": [[0, 2]]}, ["mask[0][1] is 2"]),
        ({"class_id": 0, "mask": [[0, True]]}, ["mask[0][1] is true"]),
        ({"class_id": 0, "mask": ""}, ["mask is ''"]),
        ({"class_id": 0, "image": "AAAA"}, ["image is given without a mask"]),
        ({"class_id": 0, "packed": "AAAA"}, ["packed is given without a mask"]),
        ({"class_id": 0, "prompt": "x" * 9000}, ["prompt is not a known field"]),
    ],
)
def test_a_refusal_names_the_field_and_what_is_allowed(
    offer: Offer, fields: dict[str, Any], parts: list[str]
) -> None:
    message = refusal_of(offer, **fields)
    assert all(part in message for part in parts), message
    assert len(message) < 300
    assert "\n" not in message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'"x"',
        b'{"class_id": NaN}',
        b'{"class_id": 0, "temperature": NaN}',
        b'{"class_id": 0, "guidance_scale": Infinity}',
        b'{"class_id": 0, "guidance_scale": 1e999}',
        b'{"class_id": ' + b"9" * 5000 + b"}",
        b'{"class_name": "\\ud800"}',
        b'{"class_name": "\xff"}',
        b'{"class_name": "' + b"x" * 100_000 + b'"}',
        b'{"class_id": ' + b"[" * 100_000,
        b'{"a": ' * 1000 + b"1" + b"}" * 1000,
        b'{"class_id": 0, "\\u0000": 1}',
    ],
)
def test_hostile_json_is_refused_in_one_short_sentence(offer: Offer, body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(GENERATE, body).job(offer, events=False)
    assert len(caught.value.message) < 300


def test_of_two_classes_with_one_name_the_id_is_asked_for(offer: Offer) -> None:
    twins = Offer(**{**vars_of(offer), "class_names": ("crane", "apple", "crane")})
    with pytest.raises(InvalidRequest, match="0 and 2"):
        twins.class_id("crane")


def test_the_nearest_of_a_thousand_names_are_those_of_a_comparison_with_all(offer: Offer) -> None:
    names = imagenet_names()
    many = Offer(**{**vars_of(offer), "class_names": names})
    plain = [name.casefold().replace("_", " ") for name in names]
    for name in plain[::23]:
        typed = name[1:] + "s" if len(name) % 2 else name[:3] + "x" + name[4:]
        wanted = difflib.get_close_matches(typed, plain, 1, cutoff=0.5)[0]
        with pytest.raises(InvalidRequest) as caught:
            many.class_id(typed)
        hint = caught.value.message.partition("did you mean ")[2]
        assert f"{names[plain.index(wanted)]!r}" in hint, typed


def vars_of(offer: Offer) -> dict[str, Any]:
    return {name: getattr(offer, name) for name in offer.__dataclass_fields__}


def test_a_bundle_without_generator_refuses_to_draw(offer: Offer) -> None:
    tokenizer_only = Offer(**{**vars_of(offer), "max_steps": 0})
    assert "no generator" in refusal_of(tokenizer_only, class_id=0)


def test_classes_are_found_in_any_case_and_with_spaces() -> None:
    names = ("bell_pepper", "Red Apple", "fig")
    offer = Offer(**{**dict.fromkeys(Offer.__dataclass_fields__), "class_names": names})  # type: ignore[arg-type]
    assert offer.search("L P") == [0]
    assert offer.search("apple") == [1]
    assert offer.search("") == [0, 1, 2]
    assert offer.search("nothing") == []


def grid_of(offer: Offer, **fields: Any) -> Any:
    return parse(DETOKENIZE, json.dumps(fields).encode()).token_grid(offer)


def test_the_three_forms_of_a_token_grid_are_equal_and_go_together(offer: Offer) -> None:
    grid = np.random.default_rng(0).integers(0, 64, (8, 8))
    rows = [[format(token, "06b")[::-1] for token in row] for row in grid.tolist()]
    packed = int("".join(bit for row in rows for token in row for bit in token)[::-1], 2).to_bytes(
        48, "little"
    )
    forms = {"indices": grid.tolist(), "tokens": rows, "packed": base64.b64encode(packed).decode()}
    for name, value in forms.items():
        np.testing.assert_array_equal(grid_of(offer, **{name: value}), grid)
    np.testing.assert_array_equal(grid_of(offer, **forms), grid)
    forms["indices"] = (grid ^ 1).tolist()
    with pytest.raises(InvalidRequest, match="tokens and indices are not the same tokens"):
        grid_of(offer, **forms)
    assert bits.to_strings(grid, 6) == rows


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({}, "none of them"),
        ({"indices": [[0]], "packed": "AAAA"}, "1 rows of 1 tokens"),
        ({"indices": [[0] * 8] * 8, "grid": [8, 9]}, "grid is [8, 9]"),
        ({"indices": [[0] * 8] * 8, "grid": [8]}, "at least 2"),
        ({"indices": [[0] * 8] * 8, "bits_per_token": 7}, "bits_per_token is 7"),
        ({"indices": [[0] * 8] * 8, "bit_order": "msb-first"}, "'msb-first'"),
        ({"indices": []}, "0 rows"),
        ({"indices": [[0] * 8] * 7}, "7 rows"),
        ({"indices": [[0] * 8] * 7 + [[0] * 9]}, "8 and 9 tokens"),
        ({"indices": [[64] * 8] * 8}, "0 to 63"),
        ({"indices": [[-1] * 8] * 8}, "indices[0][0] is -1"),
        ({"indices": [[1.0] * 8] * 8}, "integer"),
        ({"indices": [[2**70] * 8] * 8}, "indices[0][0]"),
        ({"tokens": [["00000"] * 8] * 8}, "6 characters"),
        ({"tokens": [["0000é0"] * 8] * 8}, "6 characters"),
        ({"tokens": [[7] * 8] * 8}, "tokens[0][0] is 7"),
        ({"packed": "AAAA"}, "3 bytes"),
        ({"packed": "nope!"}, "base64"),
        ({"indices": [[0] * 8] * 8, "format": "npy"}, "'npy'"),
    ],
)
def test_a_wrong_token_grid_is_refused(offer: Offer, fields: dict[str, Any], part: str) -> None:
    with pytest.raises((InvalidRequest, InputError)) as caught:
        grid_of(offer, **fields)
    assert part in str(caught.value)


def test_an_answer_of_tokenize_is_a_body_of_detokenize(offer: Offer) -> None:
    grids = np.random.default_rng(0).integers(0, 64, (1, 8, 8))
    for encoding in ("bits", "indices", "packed"):
        body = parse(DETOKENIZE, bytes(tokens_answer(Tokens.of(grids), encoding, offer).response().body))
        np.testing.assert_array_equal(body.token_grid(offer), grids[0])


@pytest.mark.parametrize(
    ("schema", "kinds"),
    [(GENERATE, 1), (PICTURE, 1), (DETOKENIZE, 1), (EDIT, 4), (ORDER, 3)],
    ids=["generate", "picture", "detokenize", "edit", "order"],
)
def test_every_field_of_a_body_has_a_description(schema: TypeAdapter[Any], kinds: int) -> None:
    document = schema.json_schema()
    objects = [one for one in (document, *document.get("$defs", {}).values()) if "properties" in one]
    assert len(objects) == kinds
    for one in objects:
        for name, field in one["properties"].items():
            assert field.get("description"), f"{one['title']}.{name}"


def test_the_kind_chooses_the_form_of_a_job() -> None:
    assert isinstance(parse(ORDER, b'{"kind": "generate", "class_id": 1}'), GenerateOrder)
    assert isinstance(parse(ORDER, b'{"kind": "tokenize", "image": "AAAA", "fit": "pad"}'), TokenizeOrder)
    assert isinstance(parse(ORDER, b'{"kind": "detokenize", "packed": ""}'), DetokenizeBody)
    with pytest.raises(InvalidRequest, match="kind is 'draw'; allowed are generate, tokenize and detokenize"):
        parse(ORDER, b'{"kind": "draw"}')
    with pytest.raises(InvalidRequest, match="kind is missing, it is required"):
        parse(ORDER, b"{}")
    order = parse(ORDER, b'{"kind": "generate", "class_id": 1, "preview_every": 4}')
    assert isinstance(order, GenerateOrder)
    with pytest.raises(InvalidRequest, match=r"^class_id\[1\] is 'x'"):
        parse(ORDER, b'{"kind": "generate", "class_id": [1, "x"]}')
    with pytest.raises(InvalidRequest, match=r"^generate is not a known field"):
        parse(ORDER, b'{"kind": "generate", "class_id": 1, "generate": 0}')
    with pytest.raises(InvalidRequest, match="n is 0"):
        parse(ORDER, b'{"kind": "generate", "class_id": 1, "n": 0}')


@pytest.mark.parametrize("dtype", ["<i4", ">i4", "<u8", "|u1", "<i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_files_of_any_integer_type_are_read(dtype: str, order: Any, tmp_path: Path) -> None:
    grid = np.arange(64).reshape(8, 8)
    np.save(tmp_path / "a.npy", np.array(grid, dtype=dtype, order=order))
    np.testing.assert_array_equal(read_npy((tmp_path / "a.npy").read_bytes(), (8, 8)), grid)
    np.testing.assert_array_equal(read_npy(write_npy(grid), (8, 8)), grid)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8)),
        np.zeros((8, 8), bool),
        np.zeros((8, 9), np.int32),
        np.zeros(64, np.int32),
        np.zeros((1, 8, 8), np.int32),
        np.full((8, 8), 2**63, np.uint64),
        np.zeros((8, 8), "U4"),
        np.zeros((8, 8), [("a", "<i4")]),
    ],
    ids=str,
)
def test_other_arrays_are_refused(array: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InvalidRequest):
        read_npy((tmp_path / "a.npy").read_bytes(), (8, 8))


def test_a_pickle_in_a_numpy_file_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return pytest.fail, ("the pickle was opened",)

    array = np.empty((8, 8), object)
    array[0, 0] = Bomb()
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(InvalidRequest):
        read_npy((tmp_path / "a.npy").read_bytes(), (8, 8))


@given(st.binary(max_size=300))
def test_bytes_that_are_no_numpy_file_are_refused(data: bytes) -> None:
    for body in (data, b"\x93NUMPY\x01\x00" + data, write_npy(np.zeros((8, 8), np.int64))[: len(data)]):
        with pytest.raises(InvalidRequest):
            read_npy(body, (8, 8))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_whatever_was_got_is_shown_in_a_few_words(value: object) -> None:
    assert len(shorten(value)) < 500


@pytest.mark.parametrize("field", ["tokens", "indices"])
def test_a_thousand_wrong_tokens_are_one_error(field: str) -> None:
    body = json.dumps({field: [[None] * 100] * 100}).encode()
    with pytest.raises(ValidationError) as caught:
        DETOKENIZE.validate_json(body)
    assert caught.value.error_count() == 1
