"""The page in a real browser against the real service: draw, tokenize, a phone, no errors in the console.

With MASKBIT_SCREENSHOT set to a path, the picture of the README is written there.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.service_fixtures import Running

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no chromium on PATH")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, service: Running) -> Iterator[Page]:
    """The page, which must write no error into the console and ask no other host."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    hosts: set[str] = set()

    def hear(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    opened.on("console", hear)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    opened.goto(service.url)
    yield opened
    assert errors == []
    assert {host for host in hosts if host} == {f"127.0.0.1:{service.port}"}
    context.close()


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A picture of odd shape, as a user has them."""
    rows, columns = np.mgrid[0:300, 0:400]
    pixels = np.stack([rows * 255 // 300, columns * 255 // 400, 255 - rows * 255 // 300], axis=-1)
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=92)
    return path


def test_a_click_draws_pictures_with_progress_and_the_link_repeats_them(page: Page, service: Running) -> None:
    page.locator(".class-button").filter(has_text="strawberry").click()
    page.fill("#seed", "7")
    page.fill("#count", "2")
    page.click("#draw")
    pictures = page.locator("#results img")
    expect(pictures).to_have_count(2, timeout=PATIENCE_MS)
    first = pictures.first.get_attribute("src")
    assert first is not None
    assert "seed=7" in page.url
    page.goto("about:blank")
    page.goto(service.url + "/#" + "class=15&seed=7&count=2")
    expect(page.locator("#seed")).to_have_value("7")
    page.click("#draw")
    expect(pictures).to_have_count(2, timeout=PATIENCE_MS)


def test_a_photograph_becomes_a_token_grid_and_comes_back(
    page: Page, photograph: Path, service: Running
) -> None:
    page.set_input_files("#file", str(photograph))
    expect(page.locator("#reconstruction")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#grid")).to_be_visible()
    expect(page.locator("#photo")).to_be_visible()
    expect(page.locator("#readout")).not_to_be_empty()


def test_what_is_no_picture_gets_a_message_that_helps(
    browser: Browser, service: Running, tmp_path: Path
) -> None:
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    context = browser.new_context()
    page = context.new_page()
    page.goto(service.url)
    page.set_input_files("#file", str(text))
    expect(page.locator("#message")).to_contain_text("PNG", timeout=PATIENCE_MS)
    context.close()


def test_a_phone_shows_the_page_without_sideways_scrolling(browser: Browser, service: Running) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
    page = context.new_page()
    page.goto(service.url)
    expect(page.locator(".class-button").first).to_be_visible(timeout=PATIENCE_MS)
    width = page.locator("body").bounding_box()
    assert width is not None
    assert width["width"] <= 360
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as shot:
        assert shot.width == 360
    context.close()


def test_the_screenshot_of_the_readme_shows_pictures_and_tokens(page: Page, tmp_path: Path) -> None:
    page.locator(".class-button").filter(has_text="green tomato").click()
    page.fill("#seed", "11")
    page.fill("#count", "4")
    page.click("#draw")
    expect(page.locator("#results img")).to_have_count(4, timeout=PATIENCE_MS)
    page.locator(".tile-tokens").first.click()
    expect(page.locator("#reconstruction")).to_be_visible(timeout=PATIENCE_MS)
    target = Path(os.environ.get("MASKBIT_SCREENSHOT") or tmp_path / "page.png")
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=target, full_page=True)
    with Image.open(target) as shot:
        # A blank page has one colour.
        assert len(np.unique(np.asarray(shot.convert("L")))) > 50
