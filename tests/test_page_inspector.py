"""The page's inspector in a real browser: bits, undo, views, masks and photographs, compared with the API."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, expect

from tests.page_fixtures import Visit, link_to, open_picture, open_tokens, photograph, pixels_of
from tests.service_fixtures import Running

SIDE = 16


@pytest.fixture
def inspector(visit: Visit, service: Running) -> Page:
    """The page with a drawn picture open."""
    page = visit(link_to(service.url, **{"class": 7}, seed=11, count=1, steps=3))
    page.locator(".tile[data-state=done] .tile-open").click()
    return page


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture of odd shape, as a user has them."""
    rows, columns = np.mgrid[0:300, 0:400]
    pixels = np.stack([rows * 255 // 300, columns * 255 // 400, 255 - rows * 255 // 300], axis=-1)
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=92)
    return path


def show_plane(page: Page, plane: int) -> None:
    page.locator("#plane-options label").nth(plane + 1).click()


def place(page: Page, selector: str, row: int, column: int) -> tuple[float, float]:
    """The middle of a cell on the screen."""
    page.locator(selector).scroll_into_view_if_needed()
    box = page.locator(selector).bounding_box()
    assert box is not None
    return box["x"] + (column + 0.5) * box["width"] / SIDE, box["y"] + (row + 0.5) * box["height"] / SIDE


def drag(page: Page, selector: str, *cells: tuple[int, int]) -> None:
    page.mouse.move(*place(page, selector, *cells[0]))
    page.mouse.down()
    for cell in cells[1:]:
        page.mouse.move(*place(page, selector, *cell))
    page.mouse.up()


def settled(page: Page, words: str) -> None:
    expect(page.locator("#inspect-status")).to_contain_text(words)


def decoded(service: Running, tokens: NDArray[np.int32]) -> NDArray[np.uint8]:
    """What the service makes of tokens."""
    reply = service.client.post("/detokenize", json={"indices": tokens.tolist()}).raise_for_status()
    return pixels_of(base64.b64decode(reply.json()["images"][0]["b64"]))


def test_the_tokens_are_those_that_were_drawn(inspector: Page, service: Running) -> None:
    order = {"class_id": 7, "seed": 11, "steps": 3, "format": "tokens"}
    reply = service.client.post("/generate", json=order).raise_for_status()
    tokens = open_tokens(inspector)
    assert tokens.tolist() == reply.json()["images"][0]["indices"]
    np.testing.assert_array_equal(open_picture(inspector), decoded(service, tokens))


def test_flipping_a_plane_changes_the_picture_and_undo_brings_it_back(
    inspector: Page, service: Running
) -> None:
    before, picture = open_tokens(inspector), open_picture(inspector)
    show_plane(inspector, 3)
    inspector.click("[data-op=flip]")
    settled(inspector, "256 of 3,072 bits changed")
    np.testing.assert_array_equal(open_tokens(inspector), before ^ (1 << 3))
    np.testing.assert_array_equal(open_picture(inspector), decoded(service, before ^ (1 << 3)))
    inspector.click("#undo")
    settled(inspector, "as it was")
    np.testing.assert_array_equal(open_picture(inspector), picture)
    inspector.click("#redo")
    settled(inspector, "256 of 3,072 bits changed")
    inspector.click("#reset")
    settled(inspector, "as it was")
    np.testing.assert_array_equal(open_tokens(inspector), before)


def test_a_click_flips_one_bit_and_a_drag_selects_a_box(inspector: Page) -> None:
    before = open_tokens(inspector)
    show_plane(inspector, 0)
    inspector.mouse.click(*place(inspector, "#grid-cells", 4, 9))
    settled(inspector, "1 of 3,072 bits changed")
    inspector.locator("#token-bits button").nth(5).click()
    settled(inspector, "2 of 3,072 bits changed")
    expected = before.copy()
    expected[4, 9] ^= 0b100001
    np.testing.assert_array_equal(open_tokens(inspector), expected)
    drag(inspector, "#picture-cells", (2, 3), (5, 4), (6, 8))
    expect(inspector.locator("#plane-where")).to_have_text("in the 5 × 6 tokens selected")
    show_plane(inspector, 11)
    inspector.click("[data-op=set]")
    show_plane(inspector, 10)
    inspector.click("[data-op=clear]")
    expected[2:7, 3:9] |= 1 << 11
    expected[2:7, 3:9] &= ~(1 << 10)
    np.testing.assert_array_equal(open_tokens(inspector), expected)
    # A click beside the box only lets it go.
    inspector.mouse.click(*place(inspector, "#grid-cells", 12, 12))
    expect(inspector.locator("#plane-where")).to_have_text("in every token")
    np.testing.assert_array_equal(open_tokens(inspector), expected)


def test_many_quick_flips_end_in_the_picture_of_all_of_them(inspector: Page, service: Running) -> None:
    before = open_tokens(inspector)
    show_plane(inspector, 1)
    # More of them than one request to /edit takes.
    inspector.evaluate(
        """() => {
          for (let k = 0; k < 75; k++) document.querySelector("[data-op=flip]").click();
        }"""
    )
    settled(inspector, "256 of 3,072 bits changed")
    np.testing.assert_array_equal(open_picture(inspector), decoded(service, before ^ (1 << 1)))


def shown(page: Page) -> NDArray[np.uint8]:
    """The picture on the screen, without the layer over it, u8 (h, w, 3)."""
    drawn = page.locator("#picture").evaluate(
        """image => {
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          canvas.getContext("2d").drawImage(image, 0, 0);
          return canvas.toDataURL().split(",")[1];
        }"""
    )
    return pixels_of(base64.b64decode(drawn))


def test_the_views_show_before_and_what_differs(inspector: Page) -> None:
    picture = open_picture(inspector)
    show_plane(inspector, 2)
    inspector.click("[data-op=flip]")
    settled(inspector, "bits changed")
    changed = open_picture(inspector)
    image = inspector.locator("#picture")
    inspector.get_by_role("radio", name="before", exact=True).check()
    expect(image).to_have_attribute("alt", "The picture before the changes")
    np.testing.assert_array_equal(shown(inspector), picture)
    inspector.get_by_role("radio", name="difference", exact=True).check()
    expect(image).to_have_attribute(
        "alt", "What differs between now and before, brightened: black is the same"
    )
    gap = np.abs(picture.astype(int) - changed.astype(int))
    np.testing.assert_array_equal(shown(inspector), np.minimum(255, 4 * gap))
    photograph(inspector, "difference")


def test_a_painted_part_is_drawn_anew_as_another_class_and_the_rest_is_kept(
    inspector: Page, service: Running
) -> None:
    before = open_tokens(inspector)
    inspector.get_by_role("radio", name="Draw a part anew", exact=True).check()
    expect(inspector.locator("#redraw")).to_be_disabled()
    drag(inspector, "#picture-cells", (3, 3), (3, 12))
    expect(inspector.locator("#mask-said")).to_have_text("36 of 256 tokens marked")
    inspector.get_by_text("Erase").click()
    drag(inspector, "#grid-cells", (3, 12), (3, 12))
    expect(inspector.locator("#mask-said")).to_have_text("27 of 256 tokens marked")
    inspector.select_option("#redraw-class", label="strawberry")
    inspector.click("#redraw")
    settled(inspector, "Drawn anew as strawberry")
    after = open_tokens(inspector)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[2:5, 2:11] = True
    np.testing.assert_array_equal(after[~mask], before[~mask])
    assert (after != before).sum() > 0
    np.testing.assert_array_equal(open_picture(inspector), decoded(service, after))
    photograph(inspector, "redrawn")
    inspector.click("#undo")
    np.testing.assert_array_equal(open_tokens(inspector), before)


def test_a_photograph_becomes_tokens_and_comes_back_with_its_psnr(
    visit: Visit, service: Running, photo: Path
) -> None:
    page = visit(service.url)
    page.set_input_files("#file", str(photo))
    settled(page, "photo.jpg")
    headers = {"Content-Type": "image/jpeg"}
    reply = service.client.post(
        "/reconstruct", content=photo.read_bytes(), headers=headers
    ).raise_for_status()
    answer = reply.json()
    assert open_tokens(page).tolist() == answer["indices"]
    expect(page.locator("#fact-psnr")).to_have_text(f"{answer['images'][0]['psnr_db']:.1f} dB")
    np.testing.assert_array_equal(open_picture(page), pixels_of(base64.b64decode(answer["images"][0]["b64"])))
    page.get_by_role("radio", name="photo", exact=True).check()
    expect(page.locator("#picture")).to_have_attribute(
        "alt", "The photograph, centre-cropped as the model saw it"
    )
    photograph(page, "photograph")


def test_a_dropped_picture_is_read_like_a_chosen_one(visit: Visit, service: Running, photo: Path) -> None:
    page = visit(service.url)
    expect(page.locator(".class-button").first).to_be_visible()
    transfer = page.evaluate_handle(
        """b64 => {
          const bytes = Uint8Array.from(atob(b64), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "dropped.jpg", { type: "image/jpeg" }));
          return transfer;
        }""",
        base64.b64encode(photo.read_bytes()).decode(),
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    settled(page, "dropped.jpg")
    assert open_tokens(page).shape == (SIDE, SIDE)


def test_what_is_no_picture_gets_a_message_that_helps_where_it_was_brought(
    visit: Visit, service: Running, tmp_path: Path
) -> None:
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    page = visit(service.url, refusals=True)
    expect(page.locator(".class-button").first).to_be_visible()
    page.set_input_files("#file", str(text))
    message = page.locator("#upload-message")
    expect(message).to_contain_text("PNG")
    expect(message.locator(".retry")).to_be_hidden()
    message.get_by_role("button", name="Dismiss").click()
    expect(message).to_be_hidden()


def test_the_json_file_goes_back_to_the_service_as_it_is(inspector: Page, service: Running) -> None:
    with inspector.expect_download() as download:
        inspector.click("[data-keep=json]")
    body = Path(download.value.path()).read_bytes()
    reply = service.client.post("/detokenize", content=body, headers={"Content-Type": "application/json"})
    picture = pixels_of(base64.b64decode(reply.raise_for_status().json()["images"][0]["b64"]))
    np.testing.assert_array_equal(picture, open_picture(inspector))
    with Image.open(io.BytesIO(base64.b64decode(reply.json()["images"][0]["b64"]))) as file:
        assert file.format == "PNG"
