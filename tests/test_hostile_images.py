"""Hostile pictures sent to the real service: the 40 files of the manifest, and mutations of sound ones.

MASKBIT_FUZZ_IMAGES=20000 makes more mutations than the thousand of every run.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image, ImageOps

from models.bundle import Bundle
from service.bench.running import RunningService, running_service
from service.jobs.consumer import Consumer
from service.jobs.job import ClaimedJob
from service.jobs.payloads import TokenizeJob
from tests.gateway_harness import FakeWorker, Gateway, finish
from tests.malformed import malformed

IMAGES = int(os.environ.get("MASKBIT_FUZZ_IMAGES", "1000"))
REFUSALS = {413: "payload_too_large", 415: "unsupported_media_type", 422: "invalid_request"}
pytestmark = pytest.mark.shared

_FOREIGN = [
    "bmp_q_pal8oversizepal.bmp",
    "l2rgb_read.bmp",
    "crash-2020-10-test.tif",
    "oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif",
    "tiff_16bit_RGB.tiff",
    "avif_rot1mir0.avif",
    "avif_hopper.heif",
    "unimplemented_pixel_format.dds",
    "psd-oob-write-overflow.psd",
    "crash-754d9c7ec485ffb76a90eeaab191ef69a2a3a3cd.sgi",
    "oom-8ed3316a4109213ca96fb8a256a0bfefdece1461.icns",
    "eps_reqd_showpage.eps",
    "made_external_entity.svg",
]
_DAMAGED = [
    "truncated_jpeg.jpg",
    "ultrahdr.jpg",
    "broken_data_stream.png",
    "unknown_compression_method.png",
    "made_empty.png",
    "made_strip_20000x1.png",
]


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "data" / "hostile"


def post(client: httpx.Client, data: bytes) -> httpx.Response:
    return client.post("/tokenize", content=data, headers={"Content-Type": "image/*"})


def check_refusal(reply: httpx.Response) -> None:
    error = reply.json()["error"]
    assert error["code"] == REFUSALS[reply.status_code]
    assert "Error" not in error["message"]
    assert "Traceback" not in error["message"]


def read_by_pillow(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """Pillow's own reading, u8 (16, 16, 3), unless it would leave out the colour profile or clip 16 bits."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode == "I;16" or "icc_profile" in image.info:
            return None
        picture = ImageOps.exif_transpose(image).convert("RGBA")
    white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return np.asarray(ImageOps.fit(white, (16, 16), Image.Resampling.LANCZOS))


def entries(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "manifest.json").read_text())["files"])


@pytest.mark.filterwarnings("ignore:Palette images with Transparency", "ignore:Corrupt EXIF data")
def test_each_file_of_the_manifest_is_answered_and_read_as_it_says(
    gateway: Gateway, worker: FakeWorker, folder: Path
) -> None:
    seen: list[np.ndarray[Any, Any]] = []
    looks: dict[str, np.ndarray[Any, Any]] = {}
    compared = 0

    def look(consumer: Consumer, job: ClaimedJob) -> None:
        seen.append(TokenizeJob.unpack(job.payload).images()[0].astype(int))
        finish(consumer, job)

    worker.answer = look
    for entry in entries(folder):
        data = (folder / entry["file"]).read_bytes()
        reply = post(gateway.client, data)
        if reply.status_code != 200:
            assert entry["expect"] != "decode", (entry["file"], reply.text)
            check_refusal(reply)
            continue
        assert entry["expect"] != "reject", entry["file"]
        like = looks.setdefault(entry.get("looks_like", entry["file"]), seen[-1])
        assert np.abs(seen[-1] - like).mean() < 10, entry["file"]
        expected = read_by_pillow(data)
        # One of them is all stripes, whose small picture depends on the filter.
        assert expected is None or np.abs(seen[-1] - expected).mean() < 12, entry["file"]
        compared += expected is not None
    assert compared > 12
    assert post(gateway.client, (folder / "files" / "made_gradient16.png").read_bytes()).status_code == 200
    assert (np.diff(seen[-1].mean(axis=(0, 2))) > 0).all()


@pytest.mark.parametrize(("code", "names"), [(415, _FOREIGN), (422, _DAMAGED)], ids=["415", "422"])
def test_what_is_no_sound_picture_has_the_code_of_the_table(
    gateway: Gateway, worker: FakeWorker, folder: Path, code: int, names: list[str]
) -> None:
    got = {name: post(gateway.client, (folder / "files" / name).read_bytes()).status_code for name in names}
    assert got == dict.fromkeys(names, code)


def test_too_many_pixels_are_413_by_the_header_alone(
    gateway: Gateway, worker: FakeWorker, folder: Path
) -> None:
    flood = (folder / "files" / "made_flood_12000x12000.png").read_bytes()
    for data in (flood, flood[:200]):
        reply = post(gateway.client, data)
        assert reply.status_code == 413
        assert "12000x12000" in reply.json()["error"]["message"]


def test_the_content_counts_and_not_the_declared_type(
    gateway: Gateway, worker: FakeWorker, folder: Path
) -> None:
    photo, drawing = (folder / "files" / name for name in ("hopper_gray.jpg", "made_external_entity.svg"))
    for declared in ("image/png", "image/svg+xml", "application/octet-stream"):
        headers = {"Content-Type": declared}
        assert gateway.client.post("/tokenize", content=photo.read_bytes(), headers=headers).is_success
        reply = gateway.client.post("/tokenize", content=drawing.read_bytes(), headers=headers)
        assert reply.status_code == 415


# -- mutations -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(plain_bundle: Bundle) -> Iterator[RunningService]:
    """The real service around a runtime that does nothing, with two decoders."""
    settings = {"decoders": 2, "result_ttl_s": 5}
    with running_service("noop", bundle=str(plain_bundle.path), durability="off", settings=settings) as one:
        yield one


def specimens(folder: Path, photos: Path) -> list[bytes]:
    """Small sound pictures of all formats, made of photos, and the small ones of the hostile files."""
    files = []
    for name in ("kodim03.jpg", "kodim23.jpg", "grocery_Kiwi.jpg"):
        with Image.open(photos / name) as photo:
            small = photo.convert("RGB").resize((96, 64))
        clear = small.copy()
        clear.putalpha(128)
        frames = {"save_all": True, "append_images": [small.rotate(90), small.rotate(180)]}
        exif = Image.Exif()
        exif[0x0112] = 6
        for image, options in (
            (small, {"format": "PNG"}),
            (clear, {"format": "PNG", "exif": exif}),
            (small.convert("P"), {"format": "PNG", "transparency": 3}),
            (small.convert("I;16"), {"format": "PNG"}),
            (small, {"format": "JPEG", "exif": exif, "comment": b"a comment"}),
            (small, {"format": "JPEG", "progressive": True, "subsampling": 2}),
            (small.convert("CMYK"), {"format": "JPEG", "restart_marker_rows": 1}),
            (small, {"format": "WEBP"}),
            (clear, {"format": "WEBP", "lossless": True, "exif": exif}),
            (small, {"format": "WEBP", **frames}),
            (small.convert("P"), {"format": "GIF", **frames}),
        ):
            file = io.BytesIO()
            image.save(file, **options)
            files.append(file.getvalue())
    return files + [path.read_bytes() for path in _small_files(folder)]


def _small_files(folder: Path) -> list[Path]:
    paths = [folder / entry["file"] for entry in entries(folder) if 0 < entry["bytes"] < 16_000]
    return [path for path in paths if path.suffix in (".png", ".jpg", ".webp", ".gif")]


def processes(service: RunningService) -> list[psutil.Process]:
    """The gateway, the worker and the decoders."""
    gateway = psutil.Process(service.pids["gateway"])
    return [gateway, psutil.Process(service.pids["worker"]), *gateway.children()]


def resident_mb(service: RunningService) -> list[float]:
    return [process.memory_info().rss / 1e6 for process in processes(service)]


@pytest.mark.timeout(120 + IMAGES // 20)
def test_no_malformed_picture_gets_a_5xx_or_costs_memory_or_a_process(
    service: RunningService, folder: Path, shared_data: Path
) -> None:
    sources = specimens(folder, shared_data / "data" / "photos")
    codes: Counter[int] = Counter()
    before: list[float] = []
    # A decoder gives a picture up after 10 s.
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=15) as client:
        assert all(post(client, data).status_code == 200 for data in sources[:33])
        for index, data in enumerate(malformed(sources, IMAGES)):
            if index == IMAGES // 4:
                before = resident_mb(service)
            reply = post(client, data)
            codes[reply.status_code] += 1
            assert reply.status_code in (200, *REFUSALS), (index, reply.text)
            if reply.status_code != 200:
                check_refusal(reply)
        assert client.get("/readyz").status_code == 200
    # Neither are most of them refused for their first bytes, nor do they remain what they were.
    assert codes[422] > IMAGES / 5
    assert codes[200] > IMAGES / 20
    after = resident_mb(service)
    assert len(after) == len(before) == 4
    assert max(np.subtract(after, before)) < 20
