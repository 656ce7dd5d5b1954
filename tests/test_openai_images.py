"""The OpenAI API as OpenAI's own client uses it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from openai import OpenAI
from PIL import Image

from tests.gateway_harness import FakeWorker, Gateway
from tests.service_fixtures import Running


@pytest.fixture
def client(gateway: Gateway, worker: FakeWorker) -> Iterator[OpenAI]:
    """The official client; what it would retry must fail at once here."""
    url = f"http://127.0.0.1:{gateway.port}/v1"
    with OpenAI(base_url=url, api_key="any", max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
def real_client(service: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


def pixels(b64: str | None) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    assert b64
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB"))


def test_the_client_lists_the_models(client: OpenAI, gateway: Gateway) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["tiny"]
    assert models[0].owned_by == "maskbit"
    assert client.models.retrieve("tiny").created == models[0].created > 1_600_000_000


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there are tiny"):
        client.models.retrieve("gpt-image-1")


def test_a_prompt_is_a_class_by_name_or_by_number(client: OpenAI) -> None:
    by_name = client.images.generate(model="tiny", prompt="cherry", extra_body={"seed": 9})
    by_number = client.images.generate(prompt="2", extra_body={"seed": 9})
    assert by_name.data
    assert by_number.data
    assert by_name.data[0].b64_json == by_number.data[0].b64_json
    assert by_name.data[0].revised_prompt == by_number.data[0].revised_prompt == "cherry"


def test_null_is_the_default_of_every_field_that_may_be_null(client: OpenAI) -> None:
    drawn = client.images.generate(
        prompt="1",
        background=None,
        moderation=None,
        n=None,
        output_format=None,
        partial_images=None,
        quality=None,
        response_format=None,
        size=None,
        stream=None,
        extra_body={"seed": 9},
    )
    plain = client.images.generate(prompt="1", extra_body={"seed": 9})
    assert drawn.data == plain.data
    assert drawn.output_format == "png"


def test_pictures_are_those_of_generate(client: OpenAI, gateway: Gateway) -> None:
    images = client.images.generate(prompt="1", n=3, output_format="webp", extra_body={"seed": 5})
    own = gateway.client.post("/generate", json={"class_id": 1, "n": 3, "seed": 5, "format": "webp"}).json()
    assert images.data
    assert [one.b64_json for one in images.data] == [one["b64"] for one in own["images"]]
    assert (images.size, images.output_format, images.background) == ("16x16", "webp", "opaque")
    assert images.usage
    assert (images.usage.input_tokens, images.usage.output_tokens) == (3, 3 * 64)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"prompt": "strawbery"}, "prompt is 'strawbery', which is unknown; did you mean 'strawberry'"),
        ({"prompt": "5"}, "prompt is 5; allowed are 0 to 4"),
        ({"prompt": "9" * 200}, "prompt is a number of about"),
        ({"prompt": "0", "size": "1024x1024"}, "allowed are auto and 16x16"),
        ({"prompt": "0", "response_format": "url"}, "'b64_json'"),
        ({"prompt": "0", "model": "dall-e-3"}, "allowed are tiny"),
        ({"prompt": "0", "n": 17}, "at most 16"),
        ({"prompt": "0", "background": "transparent"}, "background is 'transparent'"),
        ({"prompt": "0", "partial_images": 2}, "without stream"),
        ({"prompt": "0", "extra_body": {"seeds": 3}}, "seeds is not a known field"),
        ({"prompt": "0", "extra_body": {"seed": 1 << 63}}, "seed is 9223372036854775808"),
        ({"prompt": "0", "extra_body": {"guidance_scale": 1e52}}, "guidance_scale is 1e+52"),
        ({"prompt": "0", "stream": True, "partial_images": 1, "extra_body": {"steps": 1 << 30}}, "1 to 128"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(
    client: OpenAI, wish: dict[str, object], message: str
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.images.generate(**wish)  # type: ignore[call-overload]
    assert message in str(refused.value)
    assert refused.value.code == "invalid_request"


def test_a_stream_carries_partial_images_and_the_finished_one(real_client: OpenAI) -> None:
    events = list(
        real_client.images.generate(
            prompt="strawberry", stream=True, partial_images=3, extra_body={"seed": 7, "steps": 8}
        )
    )
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds == ["partial_image"] * 3 + ["completed"]
    partial = [event for event in events if event.type == "image_generation.partial_image"]
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    alone = real_client.images.generate(prompt="strawberry", extra_body={"seed": 7, "steps": 8})
    assert alone.data
    finished = pixels(events[-1].b64_json)
    assert finished.shape == (64, 64, 3)
    # What is drawn beside other pictures may differ by floating-point ties, so not bit for bit.
    assert np.abs(finished.astype(int) - pixels(alone.data[0].b64_json)).mean() < 1
    # Each preview is nearer to the end than a picture of another seed is.
    distances = [np.abs(pixels(event.b64_json).astype(int) - finished).mean() for event in partial]
    assert distances[-1] < distances[0]


def test_a_stream_without_partial_images_is_one_event(real_client: OpenAI) -> None:
    events = list(real_client.images.generate(prompt="3", stream=True, extra_body={"steps": 2}))
    assert [event.type for event in events] == ["image_generation.completed"]


def test_a_failed_stream_raises_in_the_client(client: OpenAI, worker: FakeWorker) -> None:
    worker.answer = lambda consumer, job: consumer.fail(job, "job_failed", "the model failed")
    with pytest.raises(openai.APIError, match="the model failed"):
        list(client.images.generate(prompt="3", stream=True))


def test_only_one_picture_fits_a_stream(client: OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="a stream carries one picture"):
        client.images.generate(prompt="3", stream=True, n=2)
