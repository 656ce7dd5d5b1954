"""Drawing a part of a picture: what the mask leaves is kept, what it covers is drawn as ever."""

import base64
import io

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models import bits
from models.bundle import Bundle
from models.drawing import Drawing, advance, canvas_of, generator_of, grids_of
from models.errors import InputError
from models.runtime.base import Integers, Runtime
from models.runtime.noop_runtime import NoopRuntime
from models.runtime.torch_runtime import TorchRuntime
from models.sampling_config import SamplingConfig
from models.schedule import at_most, plan_steps
from service.errors import JobFailed
from service.jobs.consumer import Consumer
from service.jobs.job import ClaimedJob
from service.jobs.payloads import GenerateJob
from service.worker.rows import rows_of
from service.worker.scheduler import Row
from service.worker.task import Task
from tests.gateway_harness import FakeWorker, Gateway, until
from tests.gateway_harness import finish as fake_finish
from tests.service_fixtures import Running

pytest_plugins = ["tests.gateway_fixtures", "tests.service_fixtures"]

SAMPLING = SamplingConfig(steps=5, guidance_scale=2.0, guidance_annealing="none", noise_temperature=3.0)
SHAPE = (8, 8)
Masks = NDArray[np.bool_]


@pytest.fixture(scope="module")
def network(tiny_bundle: Bundle) -> TorchRuntime:
    return TorchRuntime(tiny_bundle, device="cpu")


@pytest.fixture(scope="module", params=["torch", "noop"])
def runtime(request: pytest.FixtureRequest, network: TorchRuntime, tiny_bundle: Bundle) -> Runtime:
    return network if request.param == "torch" else NoopRuntime(tiny_bundle)


def source(seed: int = 0) -> Integers:
    return np.random.default_rng(seed).integers(0, 64, SHAPE)


def random_mask(seed: int, share: float) -> Masks:
    mask = np.random.default_rng(seed).random(SHAPE) < share
    mask.flat[seed % 64] = True
    return mask


def begin(
    bundle: Bundle,
    mask: Masks | None,
    seed: int,
    tokens: Integers | None = None,
    sampling: SamplingConfig = SAMPLING,
) -> Drawing:
    config = generator_of(bundle.manifest)
    canvas = None if mask is None else canvas_of(config, source() if tokens is None else tokens, mask)
    groups = 128 if mask is None else 2 * int(mask.sum())
    return Drawing.start(config, at_most(sampling, groups), seed % 5, seed, canvas)


def finish(runtime: Runtime, bundle: Bundle, drawing: Drawing) -> Integers:
    while not drawing.finished:
        advance(runtime, [drawing])
    grid: Integers = grids_of(bundle.manifest, drawing.tokens[None])[0]
    return grid


@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.sampled_from(["confidence", "halton"]),
)
@settings(max_examples=60, deadline=None)
def test_kept_tokens_stay_exactly_as_given(
    network: TorchRuntime, tiny_bundle: Bundle, seed: int, chance: int, share: float, order: str
) -> None:
    mask, tokens = random_mask(chance, share), source(chance)
    sampling = SamplingConfig(steps=3, guidance_scale=1.0, noise_temperature=3.0, group_order=order)
    for runtime in (network, NoopRuntime(tiny_bundle)):
        drawn = finish(runtime, tiny_bundle, begin(tiny_bundle, mask, seed, tokens, sampling))
        np.testing.assert_array_equal(drawn[~mask], tokens[~mask])
        assert drawn.min() >= 0
        assert drawn.max() < 64


def test_a_mask_of_everything_draws_what_is_drawn_from_nothing(runtime: Runtime, tiny_bundle: Bundle) -> None:
    everything = np.ones(SHAPE, dtype=bool)
    for seed in range(10):
        from_nothing = finish(runtime, tiny_bundle, begin(tiny_bundle, None, seed))
        for tokens in (source(seed), np.zeros(SHAPE, dtype=np.int64)):
            again = finish(runtime, tiny_bundle, begin(tiny_bundle, everything, seed, tokens))
            np.testing.assert_array_equal(again, from_nothing)


def test_the_schedule_runs_over_the_masked_groups_alone(runtime: Runtime, tiny_bundle: Bundle) -> None:
    mask = random_mask(3, 0.4)
    masked_groups = 2 * int(mask.sum())
    drawing = begin(tiny_bundle, mask, 7)
    masked = generator_of(tiny_bundle.manifest).group_codes
    assert int((drawing.tokens == masked).sum()) == masked_groups
    for plan in plan_steps(SAMPLING, masked_groups)[:-1]:
        advance(runtime, [drawing])
        assert int((drawing.tokens == masked).sum()) == plan.mask_count
        assert not (drawing.tokens == masked).reshape(*SHAPE, 2)[~mask].any()


def test_pictures_with_and_without_a_source_share_a_batch(runtime: Runtime, tiny_bundle: Bundle) -> None:
    def drawings() -> list[Drawing]:
        masks = (None, random_mask(1, 0.2), random_mask(2, 0.9), np.ones(SHAPE, dtype=bool))
        return [begin(tiny_bundle, mask, seed) for seed, mask in enumerate(masks)]

    together = drawings()
    while left := [one for one in together if not one.finished]:
        advance(runtime, left)
    for one, alone in zip(together, drawings(), strict=True):
        finish(runtime, tiny_bundle, alone)
        np.testing.assert_array_equal(one.tokens, alone.tokens)


def test_what_is_drawn_depends_on_what_is_kept(network: TorchRuntime, tiny_bundle: Bundle) -> None:
    mask = random_mask(4, 0.5)
    grids = [finish(network, tiny_bundle, begin(tiny_bundle, mask, 1, source(k))) for k in range(2)]
    assert (grids[0][mask] != grids[1][mask]).any()


@pytest.mark.parametrize(("steps", "groups", "wanted"), [(9, 2, 2), (9, 9, 9), (9, 128, 9), (1, 1, 1)])
def test_there_are_at_most_as_many_steps_as_groups_to_draw(steps: int, groups: int, wanted: int) -> None:
    sampling = at_most(SamplingConfig(steps=steps), groups)
    assert sampling.steps == wanted == len(plan_steps(sampling, groups))


@pytest.mark.parametrize(
    ("tokens", "mask", "words"),
    [
        (np.zeros((8, 7), np.int64), np.ones(SHAPE, bool), r"tokens are \(8, 7\)"),
        (np.zeros(SHAPE, np.int64), np.ones(64, bool), r"mask is \(64,\)"),
        (np.full(SHAPE, 64), np.ones(SHAPE, bool), "allowed are 0 to 63"),
    ],
)
def test_a_canvas_of_another_model_is_refused(
    tiny_bundle: Bundle, tokens: Integers, mask: Masks, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        canvas_of(generator_of(tiny_bundle.manifest), tokens, mask)


# -- through the queue ---------------------------------------------------------------------------------------


def job(tokens: Integers, mask: Masks, steps: int, seeds: tuple[int, ...]) -> GenerateJob:
    return GenerateJob(
        class_ids=(0,) * len(seeds),
        seeds=seeds,
        sampling=SamplingConfig(steps=steps, guidance_scale=0.0, noise_temperature=1.0),
        format="tokens",
        tokens=bits.pack(tokens, 6),
        mask=bits.pack_mask(mask),
    )


def rows(bundle: Bundle, request: GenerateJob) -> list[Row]:
    return rows_of(bundle.manifest, Task("edit", request))


def test_a_job_carries_its_source_through_the_queue(tiny_bundle: Bundle) -> None:
    mask, tokens = random_mask(5, 0.3), source(5)
    packed = job(tokens, mask, 4, (1, 2)).pack()
    assert len(packed) < 400
    for row in rows(tiny_bundle, GenerateJob.unpack(packed)):
        drawn = finish(NoopRuntime(tiny_bundle), tiny_bundle, row)
        np.testing.assert_array_equal(drawn[~mask], tokens[~mask])
        assert (drawn[mask] != tokens[mask]).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask": b"\x01"}, "packed tokens hold 1 bytes"),
        ({"tokens": b""}, "packed tokens hold 0 bytes"),
        ({"mask": bytes(8)}, "0 bit groups"),
    ],
)
def test_a_job_whose_source_does_not_fit_the_model_is_refused_by_the_worker(
    tiny_bundle: Bundle, changes: dict[str, bytes], words: str
) -> None:
    sound = job(source(), random_mask(5, 0.3), 4, (1,))
    with pytest.raises(InputError, match=words):
        rows(tiny_bundle, GenerateJob(**{**vars(sound), **changes}))


def test_a_malformed_source_never_leaves_the_queue() -> None:
    sound = msgpack.unpackb(job(source(), random_mask(5, 0.3), 4, (1,)).pack())
    with pytest.raises(JobFailed, match="malformed GenerateJob"):
        GenerateJob.unpack(msgpack.packb({**sound, "mask": "text"}))


# -- through a gateway ---------------------------------------------------------------------------------------


class Recorder:
    """Answers as the fake worker does, and keeps what it was asked to draw."""

    def __init__(self, worker: FakeWorker) -> None:
        self.kinds: list[str] = []
        self.drawn: list[GenerateJob] = []
        worker.answer = self

    def __call__(self, consumer: Consumer, claimed: ClaimedJob) -> None:
        self.kinds.append(claimed.kind)
        if claimed.kind == "generate":
            self.drawn.append(GenerateJob.unpack(claimed.payload))
        fake_finish(consumer, claimed)


def picture(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def mask_in(request: GenerateJob) -> Masks:
    return bits.unpack_mask(request.mask, SHAPE)


def tokens_in(request: GenerateJob) -> Integers:
    return bits.unpack(request.tokens, SHAPE, 6)


def test_tokens_and_mask_reach_the_job_in_every_form(gateway: Gateway, worker: FakeWorker) -> None:
    recorder = Recorder(worker)
    grid, mask = source(3), random_mask(3, 0.5)
    forms = (
        {"indices": grid.tolist()},
        {"tokens": bits.to_strings(grid, 6)},
        {"packed": base64.b64encode(bits.pack(grid, 6)).decode()},
    )
    for form in forms:
        body = {"class_id": [0, 2], "n": 2, "mask": mask.astype(int).tolist(), **form}
        answer = gateway.client.post("/generate", json=body)
        assert answer.status_code == 200, answer.text
        request = recorder.drawn[-1]
        np.testing.assert_array_equal(tokens_in(request), grid)
        np.testing.assert_array_equal(mask_in(request), mask)
        assert request.class_ids == (0, 0, 2, 2)
    accepted = gateway.client.post("/jobs", json={"kind": "generate", **body})
    assert accepted.status_code == 202
    until(lambda: len(recorder.drawn) == 4)
    np.testing.assert_array_equal(tokens_in(recorder.drawn[-1]), grid)
    assert set(recorder.kinds) == {"generate"}


@pytest.mark.parametrize("path", ["/generate", "/jobs"])
def test_a_picture_becomes_tokens_before_it_is_drawn_into(
    gateway: Gateway, worker: FakeWorker, path: str
) -> None:
    recorder = Recorder(worker)
    image = picture(np.full((20, 20, 3), 9, dtype=np.uint8))
    body = {"class_id": 1, "image": image, "mask": random_mask(1, 0.1).astype(int).tolist()}
    answer = gateway.client.post(path, json=body | ({"kind": "generate"} if path == "/jobs" else {}))
    assert answer.status_code in (200, 202), answer.text
    until(lambda: recorder.drawn)
    assert recorder.kinds == ["tokenize", "generate"]
    # The fake worker's tokens count up from the picture's mean.
    np.testing.assert_array_equal(tokens_in(recorder.drawn[0]), (np.arange(64).reshape(SHAPE) + 9) % 64)


def test_bright_pixels_mark_their_tokens(gateway: Gateway, worker: FakeWorker) -> None:
    recorder = Recorder(worker)

    def marked(pixels: NDArray[np.uint8], **more: object) -> Masks:
        body = {"class_id": 0, "indices": source().tolist(), "mask": picture(pixels), **more}
        answer = gateway.client.post("/generate", json=body)
        assert answer.status_code == 200, answer.text
        return mask_in(recorder.drawn[-1])

    wanted = random_mask(2, 0.3)
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    # One pixel in the patch of 2 x 2 is enough; green at 220 is as bright as grey at 129, at 210 as 123.
    pixels[::2, 1::2][wanted] = (0, 220, 0)
    np.testing.assert_array_equal(marked(pixels), wanted)
    pixels[1::2, ::2] = (0, 210, 0)
    np.testing.assert_array_equal(marked(pixels), wanted)
    transparent = np.full((16, 16, 4), 255, dtype=np.uint8)
    transparent[..., 3] = np.repeat(np.repeat(wanted, 2, 0), 2, 1) * 255
    np.testing.assert_array_equal(marked(transparent), wanted)
    # A strip of white, fitted with margins above and below: the margins are kept.
    strip = marked(np.full((8, 16, 3), 255, dtype=np.uint8), fit="pad")
    assert strip.all(axis=1).tolist() == [False, False, True, True, True, True, False, False]
    assert marked(np.full((8, 16, 3), 255, dtype=np.uint8), fit="crop").all()


def test_there_are_no_more_steps_than_groups_to_draw_and_usage_says_so(
    gateway: Gateway, worker: FakeWorker
) -> None:
    mask = np.zeros(SHAPE, dtype=int)
    mask[0, :2] = 1
    body = {"class_id": 0, "indices": source().tolist(), "mask": mask.tolist()}
    for steps, wanted in ((3, 3), (4, 4), (128, 4)):
        usage = gateway.client.post("/generate", json={**body, "steps": steps}).json()["usage"]
        assert usage["steps"] == wanted
    refused = gateway.client.post("/generate", json={**body, "steps": 129})
    assert (refused.status_code, "1 to 128" in refused.text) == (422, True)


ONES = np.ones(SHAPE, dtype=int).tolist()
ZEROS = np.zeros(SHAPE, dtype=int).tolist()
BLACK = picture(np.zeros((16, 16, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"mask": ZEROS}, 422, "mask marks no token"),
        ({"mask": BLACK}, 422, "mask marks no token"),
        ({"mask": ONES[:7]}, 422, "mask has 7 rows of 8 tokens"),
        ({"mask": [*ONES[:7], [1] * 9]}, 422, "mask has 8 rows of 8 and 9 tokens"),
        ({"mask": "AAA="}, 415, "no picture"),
        ({"mask": "?"}, 422, "mask is '?', which is no base64"),
        ({"indices": None}, 422, "mask is given without the picture"),
        ({"mask": None}, 422, "indices is given without a mask"),
        ({"image": BLACK}, 422, "image and indices are both given"),
        ({"indices": [[64] * 8] * 8}, 422, "0 to 63"),
        ({"indices": None, "image": base64.b64encode(b"GIF89a").decode()}, 422, "damaged"),
        ({"fit": "zoom"}, 422, "'zoom'"),
        ({"class_id": 9}, 422, "class_id is 9"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_drawn_into_is_refused_before_anything_is_queued(
    gateway: Gateway, worker: FakeWorker, changes: dict[str, object], status: int, words: str
) -> None:
    body = {"class_id": 0, "indices": source().tolist(), "mask": ONES} | changes
    given = {name: value for name, value in body.items() if value is not None}
    for path, more in (("/generate", {}), ("/jobs", {"kind": "generate"})):
        answer = gateway.client.post(path, json=given | more)
        assert answer.status_code == status, answer.text
        assert words in answer.json()["error"]["message"]
    assert worker.claimed == []


def test_the_deadline_covers_tokenizing_and_drawing(gateway: Gateway, worker: FakeWorker) -> None:
    recorder = Recorder(worker)
    worker.gate.clear()
    body = {"class_id": 0, "image": BLACK, "mask": ONES, "deadline_ms": 300}
    answer = gateway.client.post("/generate", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_passed")
    worker.gate.set()
    assert recorder.drawn == []


# -- with the bundled model ----------------------------------------------------------------------------------


def test_the_service_keeps_what_it_is_told_to_keep(service: Running) -> None:
    about = service.client.get("/info").json()
    drawn = service.client.post("/generate", json={"class_id": 0, "seed": 5, "format": "tokens", "steps": 4})
    tokens = np.array(drawn.json()["images"][0]["indices"])
    assert list(tokens.shape) == about["grid"]
    mask = np.zeros(tokens.shape, dtype=bool)
    mask[1:4, 2:5] = True
    body = {"class_id": 1, "seed": 6, "format": "tokens", "indices": tokens.tolist()}
    answer = service.client.post(
        "/generate", json={**body, "mask": mask.astype(int).tolist(), "n": 2, "steps": 4}
    )
    assert answer.status_code == 200, answer.text
    for image in answer.json()["images"]:
        edited = np.array(image["indices"])
        np.testing.assert_array_equal(edited[~mask], tokens[~mask])
        assert (edited[mask] != tokens[mask]).any()
    everything = {**body, "mask": np.ones(tokens.shape, dtype=int).tolist(), "steps": 4}
    fresh = {"class_id": 1, "seed": 6, "format": "tokens", "steps": 4}
    again, wanted = (
        service.client.post("/generate", json=one).json()["images"][0]["indices"]
        for one in (everything, fresh)
    )
    assert again == wanted
