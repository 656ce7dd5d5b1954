import io
import signal
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from service.gateway import uploads
from service.gateway.uploads import FITS, GROUNDS, REPLY, REQUEST, Fit, Kind, RefusedError, decode

Pixels = NDArray[np.uint8]


def encoded(picture: Image.Image | NDArray[np.generic], kind: str = "PNG", **options: object) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(data: bytes, size: int = 32, fit: Fit = "crop", max_pixels: int = 10**6) -> Pixels:
    return decode(data, size=size, fit=fit, max_pixels=max_pixels)


def refusal(data: bytes, max_pixels: int = 10**6) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        decoded(data, max_pixels=max_pixels)
    return caught.value


def colourful(height: int = 32, width: int = 32) -> Pixels:
    """A smooth picture without any symmetry, red to the right, green to the bottom."""
    y, x = np.mgrid[0:height, 0:width]
    blue = (x + 2 * y) * 255 // (width + 2 * height)
    return np.stack([x * 255 // width, y * 255 // height, blue], axis=-1).astype(np.uint8)


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_picture_is_turned_as_its_exif_orientation_says(orientation: int) -> None:
    stored = colourful()
    assert np.array_equal(decoded(encoded(stored, exif=oriented(orientation))), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("orientation", [5, 6, 8])
def test_a_turned_picture_is_resized_like_the_upright_one(orientation: int, fit: Fit) -> None:
    stored = colourful(40, 90)
    turned = decoded(encoded(stored, exif=oriented(orientation)), fit=fit)
    upright = decoded(encoded(np.ascontiguousarray(UPRIGHT[orientation](stored))), fit=fit)
    assert np.abs(turned.astype(int) - upright).max() <= 1


def test_crop_keeps_the_middle_pad_adds_white_and_stretch_keeps_everything() -> None:
    wide = colourful(20, 40)
    assert np.array_equal(decoded(encoded(wide), size=20), wide[:, 10:30])
    padded = decoded(encoded(wide), size=40, fit="pad")
    assert np.array_equal(padded[10:30], wide)
    assert (padded[:10] == 255).all()
    assert (padded[30:] == 255).all()
    stretched = decoded(encoded(wide), size=20, fit="stretch")
    pairs = wide.reshape(20, 20, 2, 3).mean(axis=2)
    assert np.abs(stretched[:, 2:-2] - pairs[:, 2:-2]).max() <= 1.5


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    ramp = np.tile(np.arange(32, dtype=np.uint16) * 2114, (32, 1))
    assert np.array_equal(decoded(encoded(ramp))[..., 1], np.round(ramp / 257))


def test_the_transparent_value_of_sixteen_bit_grey_becomes_white() -> None:
    grey = np.full((32, 32), 1000, np.uint16)
    grey[8:24, 8:24] = 40000
    out = decoded(encoded(grey, transparency=1000))
    assert (out[:6] == 255).all()
    assert (out[10:22, 10:22] == 156).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_composited_on_white(kind: str) -> None:
    rgba = np.dstack([colourful(), np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))])
    alpha = rgba[..., 3:] / 255
    expected = alpha * rgba[..., :3] + (1 - alpha) * 255
    out = decoded(encoded(rgba, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    assert np.abs(out - expected).max() <= 1.01


def test_hidden_colour_of_transparent_pixels_does_not_bleed_when_shrunk() -> None:
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[::2, :, :] = (0, 0, 255, 255)
    mean = decoded(encoded(rgba), size=8).reshape(-1, 3).mean(axis=0)
    assert np.abs(mean - [127.5, 127.5, 255]).max() < 2


def test_a_transparent_palette_index_becomes_white() -> None:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 32, 16))
    for kind in ("PNG", "GIF"):
        out = decoded(encoded(image, kind, transparency=0))
        assert (out[:16] == 255).all()
        assert (out[16:] == [0, 0, 255]).all()


@pytest.mark.parametrize(("mode", "colour"), [("1", 1), ("L", 255), ("LA", (255, 255))])
def test_grey_modes_become_three_equal_channels(mode: str, colour: int | tuple[int, int]) -> None:
    image = Image.new(mode, (32, 32))
    image.paste(colour, (16, 0, 32, 32))
    out = decoded(encoded(image))
    assert (out[:, 16:] == 255).all()
    assert (out[:, :16] == (255 if mode == "LA" else 0)).all()


def test_cmyk_becomes_rgb() -> None:
    out = decoded(encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(out.astype(int) - [255, 0, 0]).max() <= 3


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_an_icc_profile_is_converted_to_srgb() -> None:
    profile = srgb_profile()
    # Red and blue primaries exchanged in the profile's tag table: its "red" is sRGB's blue.
    swapped = profile.replace(b"rXYZ", b"####").replace(b"bXYZ", b"rXYZ").replace(b"####", b"bXYZ")
    stored = colourful()
    for kind, options, tolerance in (("PNG", {}, 3), ("WEBP", {"lossless": True}, 3)):
        out = decoded(encoded(stored, kind, icc_profile=swapped, **options))
        assert np.abs(out.astype(int) - stored[..., ::-1]).max() <= tolerance


@pytest.mark.parametrize("profile", [b"no profile", srgb_profile()[:200], b"\x00" * 500])
def test_broken_profiles_and_exif_around_a_sound_picture_are_ignored(profile: bytes) -> None:
    stored = colourful()
    for exif in (
        b"Exif\x00\x00",
        b"Exif\x00\x00II*\x00\xff\xff\xff\xff",
        b"Exif\x00\x00" + bytes(range(256)),
    ):
        assert np.array_equal(decoded(encoded(stored, icc_profile=profile, exif=exif)), stored)
        assert decoded(encoded(stored, "JPEG", icc_profile=profile, exif=exif)).shape == (32, 32, 3)


def test_a_grey_picture_with_a_colour_profile_is_decoded() -> None:
    grey = colourful()[..., 0]
    out = decoded(encoded(grey, icc_profile=srgb_profile()))
    assert np.array_equal(out, np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("fit", FITS)
def test_a_large_jpeg_shrunk_while_loading_looks_like_the_whole_one_shrunk(fit: Fit) -> None:
    large = colourful(701, 1003)
    out = decoded(encoded(large, "JPEG", quality=95), fit=fit)
    whole = decoded(encoded(large), fit=fit)
    assert np.abs(out.astype(int) - whole).mean() < 1.5


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "MPO"])
def test_the_first_of_several_pictures_is_taken(kind: str) -> None:
    first, second = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    data = encoded(first, kind, save_all=True, append_images=[second])
    assert np.abs(decoded(data).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_too_many_pixels_are_refused_with_the_numbers(kind: str) -> None:
    data = encoded(colourful(40, 60), kind)
    assert decoded(data, max_pixels=2400).shape == (32, 32, 3)
    error = refusal(data, max_pixels=2399)
    assert error.kind == Kind.TOO_LARGE
    assert "60x40" in error.message
    assert "2,399" in error.message


@pytest.mark.parametrize("options", [{"lossless": True}, {}, {"exif": oriented(1)}])
def test_the_size_of_a_webp_is_known_before_its_reader_allocates_a_canvas(options: dict[str, object]) -> None:
    data = encoded(colourful(40, 60), "WEBP", **options)
    header = data[:30]  # nothing after it: Pillow's reader would refuse these bytes as damaged
    assert refusal(header, max_pixels=2399).kind == Kind.TOO_LARGE
    assert refusal(header).kind == Kind.INVALID


def test_an_absurd_aspect_ratio_is_refused_and_a_panorama_is_not() -> None:
    error = refusal(encoded(np.zeros((1, 21), np.uint8)))
    assert error.kind == Kind.INVALID
    assert "21x1" in error.message
    assert decoded(encoded(np.zeros((1, 20), np.uint8))).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (encoded(colourful(), "BMP"), "BMP"),
        (encoded(colourful(), "TIFF"), "TIFF"),
        (b"%PDF-1.7", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"just a text", "no picture"),
    ],
)
def test_other_formats_are_named_with_what_is_allowed(data: bytes, found: str) -> None:
    error = refusal(data)
    assert error.kind == Kind.UNSUPPORTED
    assert found in error.message
    assert "PNG, JPEG, WebP and GIF" in error.message


def test_an_empty_body_is_said_to_be_empty() -> None:
    error = refusal(b"")
    assert error.kind == Kind.INVALID
    assert "empty" in error.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_picture_cut_in_half_is_said_to_be_damaged(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(noise, kind)
    error = refusal(data[: len(data) // 2])
    assert error.kind == Kind.INVALID
    assert "cut short or damaged" in error.message


def test_the_decoder_process_imports_no_framework_and_nothing_of_ours() -> None:
    script = f"import runpy, sys; runpy.run_path({uploads.__file__!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, check=True, timeout=60)
    packages = {name.split(".")[0] for name in done.stdout.decode().split()}
    ours_and_heavy = {"torch", "fastapi", "pydantic", "redis", "service", "models", "training", "export"}
    assert packages >= {"PIL", "numpy"}
    assert not packages & ours_and_heavy


def test_a_picture_over_the_cpu_limit_ends_the_process() -> None:
    data = encoded(Image.new("RGB", (4000, 4000)), compress_level=1)
    request = REQUEST.pack(len(data), 64, FITS.index("crop"), GROUNDS.index("white"), 10**8) + data
    for cpu_s, answers in (("60", 2), ("0.02", 1)):
        command = [sys.executable, "-P", uploads.__file__, str(1 << 30), cpu_s]
        done = subprocess.run(command, input=request, capture_output=True, timeout=60)
        assert done.returncode == (0 if answers == 2 else -signal.SIGPROF)
        assert len(done.stdout) == answers * REPLY.size + (answers - 1) * 64 * 64 * 3
