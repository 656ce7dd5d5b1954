"""Changing bits of tokens: the operations by themselves, then `/edit`, `/reconstruct` and `/detokenize`."""

import base64
import io
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchmetrics.image import PeakSignalNoiseRatio

from models import bit_edits, bits
from models.bits import Indices
from service.gateway.reconstruction import compared, psnr_db
from service.jobs.consumer import Consumer
from service.jobs.job import ClaimedJob
from service.jobs.payloads import DetokenizeJob, TokenizeJob, Tokens
from tests.gateway_answers import error_of, png
from tests.gateway_harness import FakeWorker, Gateway, result_of, until
from tests.gateway_harness import finish as fake_finish
from tests.service_fixtures import Running

WIDTH = 6
SHAPE = (8, 8)

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]


def grid_of(seed: int) -> Indices:
    return np.random.default_rng(seed).integers(0, 1 << WIDTH, SHAPE)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    top, bottom = sorted(draw(st.lists(st.integers(0, 8), min_size=2, max_size=2, unique=True)))
    left, right = sorted(draw(st.lists(st.integers(0, 8), min_size=2, max_size=2, unique=True)))
    return top, left, bottom, right


some_grids = st.integers(0, 10**6).map(grid_of)
some_bits = st.lists(st.integers(0, WIDTH - 1), min_size=1, max_size=2 * WIDTH)
some_boxes = st.none() | boxes()


def by_strings(
    grid: Indices, chosen: list[int], box: Box | None, change: Callable[[str, str], str], other: Indices
) -> Indices:
    """The operation on strings of 0 and 1, one character after another."""
    rows, others = bits.to_strings(grid, WIDTH), bits.to_strings(other, WIDTH)
    top, left, bottom, right = box or (0, 0, *SHAPE)
    for y in range(top, bottom):
        for x in range(left, right):
            token = list(rows[y][x])
            for k in set(chosen):
                token[k] = change(token[k], others[y][x][k])
            rows[y][x] = "".join(token)
    return bits.from_strings(rows, WIDTH)


@given(some_grids, some_grids, some_bits, some_boxes)
def test_every_operation_does_what_it_does_to_strings(
    grid: Indices, other: Indices, chosen: list[int], box: Box | None
) -> None:
    before = grid.copy()
    results: list[tuple[Indices, Callable[[str, str], str]]] = [
        (bit_edits.flip(grid, chosen, box), lambda own, _: "10"[int(own)]),
        (bit_edits.set_bits(grid, chosen, box), lambda own, _: "1"),
        (bit_edits.clear(grid, chosen, box), lambda own, _: "0"),
        (bit_edits.mix(grid, other, chosen, box), lambda _, other: other),
    ]
    for result, change in results:
        np.testing.assert_array_equal(result, by_strings(grid, chosen, box, change, other))
    np.testing.assert_array_equal(grid, before)


@given(some_grids, some_grids, some_bits, boxes())
def test_flipping_twice_and_mixing_with_itself_change_nothing(
    grid: Indices, other: Indices, chosen: list[int], box: Box
) -> None:
    np.testing.assert_array_equal(bit_edits.flip(bit_edits.flip(grid, chosen, box), chosen, box), grid)
    np.testing.assert_array_equal(bit_edits.mix(grid, grid, chosen, box), grid)
    np.testing.assert_array_equal(bit_edits.mix(grid, other, range(WIDTH)), other)
    once = bit_edits.clear(grid, chosen, box)
    np.testing.assert_array_equal(bit_edits.clear(bit_edits.set_bits(grid, chosen, box), chosen, box), once)
    np.testing.assert_array_equal(bit_edits.clear(once, chosen, box), once)


@given(some_grids, some_grids, some_bits, boxes())
def test_what_lies_outside_the_box_is_untouched(
    grid: Indices, other: Indices, chosen: list[int], box: Box
) -> None:
    outside = np.ones(SHAPE, dtype=bool)
    outside[box[0] : box[2], box[1] : box[3]] = False
    for edit in (bit_edits.flip, bit_edits.set_bits, bit_edits.clear):
        np.testing.assert_array_equal(edit(grid, chosen, box)[outside], grid[outside])
    np.testing.assert_array_equal(bit_edits.mix(grid, other, chosen, box)[outside], grid[outside])


# -- edit ----------------------------------------------------------------------------------------------------


class Recorder:
    """Answers as the fake worker does, and keeps the kinds of jobs and the grids that became pictures."""

    def __init__(self, worker: FakeWorker) -> None:
        self.kinds: list[str] = []
        self.grids: list[Indices] = []
        self.pictures = 0
        worker.answer = self

    def __call__(self, consumer: Consumer, claimed: ClaimedJob) -> None:
        self.kinds.append(claimed.kind)
        if claimed.kind == "detokenize":
            self.grids.append(DetokenizeJob.unpack(claimed.payload).array()[0])
        else:
            self.pictures += TokenizeJob.unpack(claimed.payload).count
        fake_finish(consumer, claimed)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def pixels_of(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def counting(value: int) -> Indices:
    """What the fake worker makes of a picture of one colour."""
    return (np.arange(64).reshape(SHAPE) + value) % 64


def edit(gateway: Gateway, **body: Any) -> Any:
    answer = gateway.client.post("/edit", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


FLIP = {"op": "flip", "bits": [2]}


def test_operations_are_done_in_their_order_and_the_result_becomes_a_picture(
    gateway: Gateway, worker: FakeWorker
) -> None:
    recorder = Recorder(worker)
    grid, other = grid_of(1), grid_of(2)
    operations = [
        {"op": "flip", "bits": [0, 5]},
        {"op": "set", "bits": [1], "box": [0, 0, 4, 8]},
        {"op": "mix", "with": {"indices": other.tolist()}, "bits": [3, 4], "box": [2, 2, 8, 8]},
        {"op": "clear", "bits": [1], "box": [0, 0, 1, 1]},
        {"op": "mix", "with": {"image": text(png(9))}, "box": [7, 0, 8, 8]},
    ]
    answer = edit(gateway, indices=grid.tolist(), operations=operations)
    wanted = bit_edits.flip(grid, [0, 5])
    wanted = bit_edits.set_bits(wanted, [1], (0, 0, 4, 8))
    wanted = bit_edits.mix(wanted, other, [3, 4], (2, 2, 8, 8))
    wanted = bit_edits.clear(wanted, [1], (0, 0, 1, 1))
    wanted = bit_edits.mix(wanted, counting(9), range(WIDTH), (7, 0, 8, 8))
    assert answer["indices"] == wanted.tolist()
    assert answer["tokens"] == bits.to_strings(wanted, WIDTH)
    np.testing.assert_array_equal(recorder.grids[0], wanted)
    assert recorder.kinds == ["tokenize", "detokenize"]
    [image] = answer["images"]
    assert image["format"] == "png"
    assert pixels_of(base64.b64decode(image["b64"]))[0, 0, 0] == wanted.sum() % 256
    assert (answer["model"], answer["usage"]["steps"]) == ("tiny", 0)
    assert answer["id"] == worker.claimed[-1]


def test_every_form_of_a_source_gives_the_same_picture(gateway: Gateway, worker: FakeWorker) -> None:
    recorder = Recorder(worker)
    grid = counting(9)
    sources: list[dict[str, Any]] = [
        {"indices": grid.tolist()},
        {"tokens": bits.to_strings(grid, WIDTH)},
        {"packed": text(bits.pack(grid, WIDTH))},
        {"image": text(png(9))},
    ]
    answers = [edit(gateway, operations=[FLIP], **source) for source in sources]
    assert [one["indices"] for one in answers] == [bit_edits.flip(grid, [2]).tolist()] * 4
    assert len({one["images"][0]["b64"] for one in answers}) == 1
    assert recorder.kinds == ["detokenize"] * 3 + ["tokenize", "detokenize"]


def test_all_pictures_of_an_edit_are_tokenized_by_one_job(gateway: Gateway, worker: FakeWorker) -> None:
    recorder = Recorder(worker)
    mixed = [{"op": "mix", "with": {"image": text(png(value))}, "bits": [0]} for value in (1, 2)]
    answer = edit(gateway, image=text(png(9)), operations=mixed)
    assert answer["indices"] == bit_edits.mix(counting(9), counting(2), [0]).tolist()
    assert (recorder.kinds, recorder.pictures) == (["tokenize", "detokenize"], 3)


@pytest.mark.parametrize("file_format", ["jpeg", "webp", "npy", "tokens"])
def test_an_edit_answers_in_the_format_that_is_asked_for(
    gateway: Gateway, worker: FakeWorker, file_format: str
) -> None:
    answer = edit(gateway, indices=grid_of(1).tolist(), operations=[FLIP], format=file_format)
    if file_format == "tokens":
        assert (answer["images"], worker.claimed, "id" in answer) == ([], [], False)
        return
    [image] = answer["images"]
    assert image["format"] == file_format
    data = base64.b64decode(image["b64"])
    pixels = np.load(io.BytesIO(data)) if file_format == "npy" else pixels_of(data)
    assert pixels.shape == (16, 16, 3)


def test_with_accept_image_an_edit_is_the_picture_itself(gateway: Gateway, worker: FakeWorker) -> None:
    body = {"indices": grid_of(1).tolist(), "operations": [FLIP], "format": "webp"}
    answer = gateway.client.post("/edit", json=body, headers={"Accept": "image/*"})
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["x-job-id"] == worker.claimed[-1]
    assert pixels_of(answer.content).shape == (16, 16, 3)


def test_an_edit_with_an_idempotency_key_is_done_once(gateway: Gateway, worker: FakeWorker) -> None:
    def post(bit: int) -> httpx.Response:
        body = {"indices": grid_of(1).tolist(), "operations": [{"op": "flip", "bits": [bit]}]}
        return gateway.client.post("/edit", json=body, headers={"Idempotency-Key": "edit-once"})

    first, again = post(1).json(), post(1).json()
    assert (first["id"], first["images"], first["indices"]) == (
        again["id"],
        again["images"],
        again["indices"],
    )
    assert len(worker.claimed) == 1
    assert post(2).json()["error"]["code"] == "idempotency_conflict"


@pytest.mark.parametrize("path", ["/edit", "/reconstruct", "/generate"])
def test_a_client_who_leaves_ends_the_first_of_several_jobs(
    gateway: Gateway, worker: FakeWorker, path: str
) -> None:
    more: dict[str, dict[str, Any]] = {
        "/edit": {"operations": [FLIP]},
        "/reconstruct": {},
        "/generate": {"class_id": 0, "mask": [[1] * 8] * 8},
    }
    worker.gate.clear()
    body = json.dumps({"image": text(png(9)), **more[path]}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        until(lambda: worker.claimed)
    until(lambda: worker.claimed[0] in worker.stopped)
    worker.gate.set()
    assert len(worker.claimed) == 1


GRID = grid_of(1).tolist()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"operations": [FLIP]}, "one of tokens, indices, packed and image is needed, got none"),
        ({"indices": GRID}, "operations is missing"),
        ({"indices": GRID, "operations": []}, "operations is a list of 0; it should have at least 1"),
        ({"image": "", "operations": [FLIP]}, "image is ''; it should have at least 1 character"),
        ({"indices": GRID, "operations": [FLIP] * 65}, "at most 64"),
        ({"indices": GRID, "image": "AAAA", "operations": [FLIP]}, "image and indices are both given"),
        ({"indices": GRID[:7], "operations": [FLIP]}, "indices has 7 rows"),
        ({"indices": GRID, "operations": [{"op": "flip", "bits": [6]}]}, "operations[0].bits has 6"),
        ({"indices": GRID, "operations": [{"op": "flip", "bits": [-1]}]}, "operations[0].bits[0] is -1"),
        ({"indices": GRID, "operations": [{"op": "flip", "bits": []}]}, "operations[0].bits is a list of 0"),
        ({"indices": GRID, "operations": [{"op": "flip"}]}, "operations[0].bits is missing"),
        ({"indices": GRID, "operations": [{"bits": [1]}]}, "operations[0].op is missing"),
        (
            {"indices": GRID, "operations": [{"op": "xor"}]},
            "op is 'xor'; allowed are flip, set, clear and mix",
        ),
        ({"indices": GRID, "operations": [7]}, "operations[0] is 7"),
        (
            {"indices": GRID, "operations": [FLIP | {"box": [0, 0, 9, 8]}]},
            "operations[0].box is [0, 0, 9, 8]",
        ),
        ({"indices": GRID, "operations": [FLIP | {"box": [3, 0, 3, 8]}]}, "top < bottom <= 8"),
        ({"indices": GRID, "operations": [FLIP | {"box": [0, 0, 8]}]}, "operations[0].box is a list of 3"),
        ({"indices": GRID, "operations": [FLIP | {"with": {}}]}, "operations[0].with is not a known field"),
        ({"indices": GRID, "operations": [{"op": "mix"}]}, "operations[0].with is missing"),
        ({"indices": GRID, "operations": [{"op": "mix", "with": {}}]}, "got none"),
        ({"indices": GRID, "operations": [{"op": "mix", "with": {"packed": "AAAA"}}]}, "3 bytes"),
        ({"indices": GRID, "operations": [{"op": "mix", "with": {"image": "AAAA"}}] * 17}, "17 pictures"),
        ({"indices": GRID, "operations": [FLIP], "format": "gif"}, "format is 'gif'"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_a_wrong_edit_is_refused_before_anything_is_queued(
    gateway: Gateway, worker: FakeWorker, body: dict[str, Any], words: str
) -> None:
    answer = gateway.client.post("/edit", json=body)
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["error"]["message"], answer.text
    assert worker.claimed == []


# -- reconstruct ---------------------------------------------------------------------------------------------


def torchmetrics_psnr(first: Pixels, second: Pixels) -> float:
    metric = PeakSignalNoiseRatio(data_range=255.0)
    return float(metric(torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)))


@given(st.integers(0, 10**6), st.integers(1, 256))
def test_the_psnr_is_that_of_torchmetrics(seed: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    second = (first + rng.integers(0, spread + 1, first.shape)).clip(0, 255).astype(np.uint8)
    found = psnr_db(first, second)
    if (first == second).all():
        assert found is None
    else:
        assert found == pytest.approx(torchmetrics_psnr(first, second), abs=1e-4)


def test_black_against_white_is_0_db_and_equal_pictures_have_no_ratio() -> None:
    black, white = (np.full((4, 4, 3), value, dtype=np.uint8) for value in (0, 255))
    assert psnr_db(black, white) == 0
    assert psnr_db(white, white) is None
    file = io.BytesIO()
    np.save(file, white)
    assert compared(black, file.getvalue(), "npy") == (file.getvalue(), 0)
    data, ratio = compared(white, file.getvalue(), "png")
    np.testing.assert_array_equal(pixels_of(data), white)
    assert ratio is None


def test_a_picture_is_reconstructed_from_each_kind_of_body(gateway: Gateway, worker: FakeWorker) -> None:
    recorder = Recorder(worker)
    data = png(9)
    bodies: list[dict[str, Any]] = [
        {"content": data, "headers": {"Content-Type": "image/png"}},
        {"files": {"file": ("a.png", data)}},
        {"json": {"image": text(data)}},
    ]
    decoded = np.full((16, 16, 3), counting(9).sum() % 256, dtype=np.uint8)
    wanted = torchmetrics_psnr(np.full((16, 16, 3), 9, dtype=np.uint8), decoded)
    for body in bodies:
        answer = gateway.client.post("/reconstruct", **body)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        [image] = found["images"]
        np.testing.assert_array_equal(pixels_of(base64.b64decode(image["b64"])), decoded)
        assert image["psnr_db"] == pytest.approx(wanted, abs=1e-4)
        assert found["indices"] == counting(9).tolist()
        assert found["tokens"] == bits.to_strings(counting(9), WIDTH)
        assert (found["model"], found["id"]) == ("tiny", worker.claimed[-1])
    assert recorder.kinds == ["tokenize", "detokenize"] * 3


def test_a_reconstruction_comes_as_itself_with_its_psnr_in_a_header(
    gateway: Gateway, worker: FakeWorker
) -> None:
    headers = {"Content-Type": "image/png", "Accept": "image/*"}
    answer = gateway.client.post("/reconstruct?format=webp", content=png(9), headers=headers)
    assert answer.headers["content-type"] == "image/webp"
    assert float(answer.headers["x-psnr-db"]) > 0
    # The fake worker paints the sum of the tokens, which is 224 modulo 256 for every grey.
    exact = gateway.client.post("/reconstruct", content=png(224), headers=headers)
    assert "x-psnr-db" not in exact.headers
    exact = gateway.client.post("/reconstruct", content=png(224), headers={"Content-Type": "image/png"})
    assert exact.json()["images"][0]["psnr_db"] is None


def test_what_cannot_be_reconstructed_is_refused(gateway: Gateway, worker: FakeWorker) -> None:
    several = gateway.client.post("/reconstruct", files=[("file", png(1)), ("file", png(2))])
    assert (several.status_code, "2 pictures" in several.text) == (422, True)
    broken: dict[str, Any] = {"content": b"GIF89a", "headers": {"Content-Type": "image/gif"}}
    assert gateway.client.post("/reconstruct", **broken).status_code == 422
    assert gateway.client.post("/reconstruct", content=b"x").status_code == 415
    assert gateway.client.post("/reconstruct?fit=zoom", files={"file": png(1)}).status_code == 422
    assert worker.claimed == []


# -- detokenize ----------------------------------------------------------------------------------------------


def test_what_tokenize_answers_goes_into_detokenize_as_a_whole(gateway: Gateway, worker: FakeWorker) -> None:
    recorder = Recorder(worker)
    headers = {"Content-Type": "image/png"}
    for encoding in ("bits", "indices", "packed"):
        tokens = gateway.client.post(f"/tokenize?encoding={encoding}", content=png(9), headers=headers)
        assert gateway.client.post("/detokenize", json=tokens.json()).status_code == 200
        job = gateway.client.post("/jobs", json={"kind": "detokenize", **tokens.json()})
        assert job.status_code == 202
    npy = gateway.client.post("/tokenize?encoding=npy", content=png(9), headers=headers)
    again: dict[str, Any] = {"content": npy.content, "headers": {"Content-Type": npy.headers["content-type"]}}
    assert gateway.client.post("/detokenize", **again).status_code == 200
    packed: dict[str, Any] = {
        "content": bits.pack(counting(9), WIDTH),
        "headers": {"Content-Type": "application/octet-stream"},
    }
    assert gateway.client.post("/detokenize", **packed).status_code == 200
    short = gateway.client.post("/detokenize", **{**packed, "content": bytes(47)})
    assert (short.status_code, "47 bytes" in short.text) == (422, True)
    for grid in recorder.grids:
        np.testing.assert_array_equal(grid, counting(9))
    assert len(recorder.grids) >= 5


# -- with the bundled model ----------------------------------------------------------------------------------


def drawn(service: Running, **more: Any) -> Any:
    body = {"class_id": 0, "seed": 5, "steps": 4, "format": "tokens", **more}
    return service.client.post("/generate", json=body).json()["images"][0]


def test_an_edit_changes_the_right_bit_of_a_real_picture(service: Running) -> None:
    tokens = drawn(service)
    grid = np.array(tokens["indices"])
    height, width = grid.shape
    box = [0, 0, height // 2, width]
    body = {"indices": tokens["indices"], "format": "npy"}

    def pixels(operations: list[dict[str, Any]]) -> tuple[Any, Pixels]:
        answer = service.client.post("/edit", json={**body, "operations": operations})
        assert answer.status_code == 200, answer.text
        return answer.json(), np.load(io.BytesIO(base64.b64decode(answer.json()["images"][0]["b64"])))

    once = {"op": "flip", "bits": [3], "box": box}
    answer, edited = pixels([once])
    assert (np.array(answer["indices"]) ^ grid).tolist() == [
        [8 if y < height // 2 else 0] * width for y in range(height)
    ]
    _, plain = pixels([once, once])
    difference = np.abs(edited.astype(int) - plain).mean((1, 2))
    side = len(difference)
    # Norms over the whole picture carry a little of any change to everywhere.
    assert difference[: side // 4].mean() > 4 * difference[-side // 4 :].mean()


def test_a_real_picture_comes_back_from_its_tokens_and_its_psnr_is_right(service: Running) -> None:
    picture = service.client.post(
        "/generate", json={"class_id": 2, "seed": 1}, headers={"Accept": "image/png"}
    ).content
    headers = {"Content-Type": "image/png"}
    found = service.client.post("/reconstruct?format=npy", content=picture, headers=headers).json()
    decoded = np.load(io.BytesIO(base64.b64decode(found["images"][0]["b64"])))
    wanted = torchmetrics_psnr(pixels_of(picture), decoded)
    assert found["images"][0]["psnr_db"] == pytest.approx(wanted, abs=1e-3)
    assert wanted > 15
    tokens = service.client.post("/tokenize", content=picture, headers=headers).json()
    assert found["indices"] == tokens["indices"]
    again = service.client.post("/detokenize", json=tokens, headers={"Accept": "image/png"})
    np.testing.assert_array_equal(pixels_of(again.content), decoded)


def test_tokens_of_two_tokenizers_are_never_mixed(gateway: Gateway, worker: FakeWorker) -> None:
    def heir(consumer: Consumer, job: ClaimedJob) -> None:
        """Answers as a worker of another revision does, when those of this one were killed."""
        tokens = Tokens.unpack(result_of(job.kind, job.payload))
        consumer.finish(job, replace(tokens, bundle="tiny@0123456789ab").pack())

    worker.answer = heir
    picture = {"image": base64.b64encode(png(9)).decode()}
    operations = [{"op": "mix", "with": picture, "bits": [0]}]
    body = {"indices": grid_of(0).tolist(), "format": "tokens", "operations": operations}
    reply = gateway.client.post("/edit", json=body)
    assert "another revision" in error_of(reply, 503)["message"]
    assert reply.headers["retry-after"] == "1"
    told = gateway.client.post("/tokenize", content=png(9), headers={"Content-Type": "image/png"}).json()
    assert told["bundle"] == "tiny@0123456789ab"
    worker.answer = None
    assert gateway.client.post("/edit", json=body).json()["bundle"] == gateway.bundle.ref
