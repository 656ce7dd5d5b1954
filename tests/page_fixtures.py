"""A real browser that looks at the page; every visit must leave the console silent and ask no other host."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    # Other tests run without a browser library.
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

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
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
_REFUSED = "Failed to load resource"

Visit = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for a module; its event loop must not outlive it."""
    from playwright.sync_api import expect, sync_playwright

    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no chromium on PATH")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """`visit(url, …)` opens a page; at the end none may have complained or asked another host.

    `refusals=True`: the browser itself notes refused requests as errors, and the test provokes some.
    """
    complaints: list[str] = []
    asked: set[str] = set()
    # blob: addresses have no host.
    own: set[str] = {""}
    contexts = []

    def open_page(url: str, *, refusals: bool = False, **options: Any) -> Page:
        host = url.split("/")[2]
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)

        def hear(message: ConsoleMessage) -> None:
            expected = refusals and message.text.startswith(_REFUSED)
            if message.type in ("error", "warning") and not expected:
                complaints.append(message.text)

        page.on("console", hear)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.add(request.url.split("/")[2]))
        own.add(host)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert asked <= own


def link_to(url: str, **settings: object) -> str:
    """A share link; what it leaves out is the model's default."""
    return f"{url}/#" + "&".join(f"{name}={value}" for name, value in settings.items())


def saved(page: Page, button: Locator) -> bytes:
    """The file that a click on `button` saves."""
    with page.expect_download() as download:
        button.click()
    return Path(download.value.path()).read_bytes()


def open_tokens(page: Page) -> NDArray[np.int32]:
    """The tokens that are open in the inspector, read from the file that it saves."""
    grid: NDArray[np.int32] = np.load(io.BytesIO(saved(page, page.locator("[data-keep=npy]"))))
    return grid


def open_picture(page: Page) -> NDArray[np.uint8]:
    """The picture that is open in the inspector, u8 (h, w, 3)."""
    return pixels_of(saved(page, page.locator("[data-keep=png]")))


def pixels_of(file: bytes) -> NDArray[np.uint8]:
    """A picture file as u8 (h, w, 3)."""
    with Image.open(io.BytesIO(file)) as picture:
        return np.asarray(picture.convert("RGB"))


def photograph(page: Page, name: str) -> None:
    """Keep a screenshot of the whole page when MASKBIT_SCREENSHOT names a folder."""
    folder = os.environ.get("MASKBIT_SCREENSHOT")
    if folder is None:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    page.evaluate("document.fonts.ready")
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def complaints_of_axe(page: Page) -> list[str]:
    """What axe-core finds wrong with the page as it stands."""
    page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text())
    violations = page.evaluate("axe.run().then((found) => found.violations)")
    return [json.dumps({one["id"]: [node["html"] for node in one["nodes"]]}) for one in violations]
