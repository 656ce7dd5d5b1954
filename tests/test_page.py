"""The page in a real browser at the real service: drawing, the link, themes, a phone, what axe-core finds.

With MASKBIT_SCREENSHOT set to a folder, pictures of the page are written there.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.page_fixtures import PHONE, Visit, complaints_of_axe, link_to, photograph, pixels_of, saved
from tests.service_fixtures import Running

STRAWBERRY = 15


def drawn(page: Page, count: int) -> None:
    """Wait until so many pictures are there."""
    expect(page.locator(".tile[data-state=done]")).to_have_count(count)


def test_pictures_form_before_the_eyes_and_the_link_draws_them_again(visit: Visit, service: Running) -> None:
    page = visit(service.url, permissions=["clipboard-read", "clipboard-write"])
    page.locator(".class-button").filter(has_text="strawberry").click()
    page.fill("#seed", "9223372036854775806")
    page.fill("#count", "2")
    page.fill("#steps", "6")
    page.locator("#more summary").click()
    page.select_option("[name=mask_schedule]", "cosine")
    page.click("#draw")
    preview = page.locator(".preview").first
    expect(preview).to_be_visible()
    expect(page.locator(".tile-note").first).to_contain_text("step")
    drawn(page, 2)
    page.click("#share")
    expect(page.locator("#draw-status")).to_contain_text("clipboard")
    link = page.evaluate("navigator.clipboard.readText()")
    assert f"class={STRAWBERRY}" in link
    assert "seed=9223372036854775806" in link
    assert "mask_schedule=cosine" in link
    first = saved(page, page.locator(".tile-save").first)
    again = visit(link)
    drawn(again, 2)
    expect(again.locator("[name=mask_schedule]")).to_have_value("cosine")
    assert saved(again, again.locator(".tile-save").first) == first
    assert pixels_of(first).shape == (64, 64, 3)


def test_the_picture_of_the_readme_shows_pictures_and_bits(visit: Visit, service: Running) -> None:
    page = visit(link_to(service.url, **{"class": 7}, seed=11, count=4))
    drawn(page, 4)
    page.locator(".tile-open").first.click()
    page.locator("#plane-options label").nth(4).click()
    page.click("[data-op=flip]")
    expect(page.locator("#inspect-status")).to_contain_text("256 of 3,072 bits changed")
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as shot:
        # A blank page has one colour.
        assert len(np.unique(np.asarray(shot.convert("L")))) > 50
    photograph(page, "page")


def test_cancel_stops_at_once_and_gives_the_focus_back(visit: Visit, service: Running) -> None:
    page = visit(service.url)
    expect(page.locator(".class-button").first).to_be_visible()
    page.fill("#count", "1")
    page.fill("#steps", "200")
    page.focus("#draw")
    page.keyboard.press("Enter")
    expect(page.locator("#cancel")).to_be_focused()
    expect(page.locator(".tile-note").first).to_contain_text("step")
    page.keyboard.press("Enter")
    expect(page.locator("#draw-status")).to_have_text("Cancelled.")
    expect(page.locator("#draw")).to_be_focused()


def test_a_wrong_field_says_what_is_allowed_even_when_it_is_folded_away(
    visit: Visit, service: Running
) -> None:
    page = visit(link_to(service.url, temperature=99))
    expect(page.locator("[name=temperature]")).to_have_value("99")
    page.click("#draw")
    expect(page.locator("#more")).to_have_attribute("open", "")
    assert page.locator("[name=temperature]").evaluate("field => field.validity.rangeOverflow")
    page.fill("#seed", "-1")
    assert "whole number" in page.locator("#seed").evaluate("field => field.validationMessage")


def test_everything_can_be_done_with_the_keyboard(visit: Visit, service: Running) -> None:
    page = visit(service.url)
    expect(page.locator(".class-button").first).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.locator(".class-button").first.focus()
    page.keyboard.press("End")
    expect(page.locator(".class-button").last).to_have_attribute("aria-checked", "true")
    for name, keys in {"#steps": "3", "#count": "1", "#seed": "5"}.items():
        page.focus(name)
        page.keyboard.press("Control+a")
        page.keyboard.type(keys)
    page.keyboard.press("Enter")
    drawn(page, 1)
    page.locator(".tile-open").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#inspect-title")).to_be_focused()
    page.locator("#plane-options input").first.focus()
    page.keyboard.press("ArrowRight")
    page.focus("#grid-cells")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    readout = page.locator("#readout")
    expect(readout).to_contain_text("Row 2, column 3")
    before = readout.inner_text()
    page.keyboard.press("Space")
    expect(page.locator("#inspect-status")).to_contain_text("1 of 3,072 bits changed")
    assert readout.inner_text() != before
    page.keyboard.press("Control+z")
    expect(page.locator("#inspect-status")).to_contain_text("as it was")
    expect(readout).to_have_text(before)
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    expect(page.locator("#plane-where")).to_have_text("in the 2 × 2 tokens selected")
    page.keyboard.press("Escape")
    expect(page.locator("#plane-where")).to_have_text("in every token")
    page.focus("#tool-options input:checked")
    page.keyboard.press("ArrowRight")
    page.focus("#picture-cells")
    page.keyboard.press("Space")
    expect(page.locator("#mask-said")).to_have_text("9 of 256 tokens marked")
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator("#mask-said")).to_have_text("12 of 256 tokens marked")
    page.focus("#redraw")
    page.keyboard.press("Enter")
    expect(page.locator("#inspect-status")).to_contain_text("Drawn anew")
    expect(page.locator("#redraw")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_both_themes(visit: Visit, service: Running, scheme: str) -> None:
    link = link_to(service.url, **{"class": 7}, seed=11, count=1, steps=4)
    page = visit(link, color_scheme=scheme, reduced_motion="reduce")
    drawn(page, 1)
    photograph(page, f"drawn-{scheme}")
    assert complaints_of_axe(page) == []
    page.locator(".tile-open").click()
    page.locator("#grid-cells").click()
    page.locator("#more summary").click()
    assert complaints_of_axe(page) == []
    photograph(page, f"bits-{scheme}")
    page.get_by_role("radio", name="Draw a part anew", exact=True).check()
    page.locator("#picture-cells").click()
    assert complaints_of_axe(page) == []
    photograph(page, f"mask-{scheme}")
    assert page.locator(".tile img").evaluate("image => getComputedStyle(image).animationName") == "none"


def test_the_theme_follows_the_system_until_the_button_says_otherwise(visit: Visit, service: Running) -> None:
    page = visit(service.url, color_scheme="dark")

    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    dark = background()
    page.get_by_role("button", name="Change to light colours").click()
    light = background()
    assert light != dark
    page.reload()
    assert background() == light
    page.get_by_role("button", name="Change to dark colours").click()
    assert background() == dark
    page.emulate_media(color_scheme="light")
    assert background() == light


def test_a_phone_shows_everything_without_sideways_scrolling(visit: Visit, service: Running) -> None:
    link = link_to(service.url, **{"class": 7}, seed=11, count=2, steps=4)
    page = visit(link, viewport=PHONE, color_scheme="dark", has_touch=True)
    drawn(page, 2)
    page.locator(".tile-open").first.tap()
    expect(page.locator("#picture")).to_be_in_viewport()
    page.locator("#grid-cells").tap()
    expect(page.locator("#readout")).to_contain_text("Row")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for button in page.locator("main button:visible").all():
        box = button.bounding_box()
        assert box is not None
        # WCAG 2.2, 2.5.8
        assert min(box["width"], box["height"]) >= 24
    photograph(page, "phone")


def test_a_lost_connection_is_said_and_the_work_goes_on_when_it_is_back(
    visit: Visit, service: Running
) -> None:
    page = visit(service.url, refusals=True)
    expect(page.locator("#ready")).to_have_text("ready")
    page.fill("#count", "1")
    page.fill("#steps", "2")
    page.context.set_offline(True)
    expect(page.locator("#connection")).to_contain_text("offline")
    page.click("#draw")
    expect(page.locator("#draw-message")).to_contain_text("The server does not answer")
    expect(page.locator("#draw-status")).to_have_text("Stopped.")
    photograph(page, "offline")
    page.context.set_offline(False)
    expect(page.locator("#connection")).to_be_hidden()
    page.locator("#draw-message .retry").click()
    drawn(page, 1)
    expect(page.locator("#draw-message")).to_be_hidden()
