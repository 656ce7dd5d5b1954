"""The page in a real browser at a service with API keys, a rate limit and two models that draw noise."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from models.bundle import Bundle
from tests.page_fixtures import Visit, link_to, photograph
from tests.service_fixtures import Running, serving

KEY = "maskbit_a-key-for-the-page"
SLOW_KEY = "maskbit_a-key-with-few-requests"


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, plain_bundle: Bundle) -> Iterator[Running]:
    keys = f"page:{_digest(KEY)},slow:{_digest(SLOW_KEY)}:requests_per_minute=30:burst=5"
    arguments = ("--bundle", "fruit", "--bundle", str(plain_bundle.path), "--runtime", "noop")
    folder = tmp_path_factory.mktemp("guarded")
    with serving(folder, *arguments, MASKBIT_API_KEYS=keys) as running:
        yield running


def enter(page: Page, key: str) -> None:
    """Give the key that the page asks for."""
    page.fill("#key-dialog input", key)
    page.keyboard.press("Enter")


def test_the_page_asks_for_a_key_says_when_it_is_wrong_and_keeps_the_right_one(
    visit: Visit, guarded: Running
) -> None:
    page = visit(guarded.url, refusals=True)
    expect(page.locator("#key-reason")).to_have_text("This server asks for an API key.")
    photograph(page, "key")
    enter(page, "wrong")
    expect(page.locator("#key-reason")).to_contain_text("not known")
    page.keyboard.press("Escape")
    expect(page.locator("#load-message")).to_contain_text("not known")
    page.locator("#load-message .retry").click()
    expect(page.locator("#key-reason")).to_contain_text("not known")
    enter(page, KEY)
    expect(page.locator(".class-button")).to_have_count(16)
    page.reload()
    expect(page.locator(".class-button")).to_have_count(16)
    expect(page.locator("#key-dialog")).to_be_hidden()
    page.click("#forget-key")
    expect(page.locator("#key-reason")).to_have_text("This server asks for an API key.")


def test_the_model_can_be_chosen_where_there_are_several_and_the_link_names_it(
    visit: Visit, guarded: Running
) -> None:
    page = visit(guarded.url, refusals=True)
    enter(page, KEY)
    page.select_option("#model-select", "tiny")
    expect(page.locator(".class-button")).to_have_count(5)
    expect(page.locator("#model")).to_contain_text("8 × 8 tokens of 6 bits")
    page.fill("#count", "1")
    page.click("#draw")
    expect(page.locator(".tile[data-state=done]")).to_have_count(1)
    assert "model=tiny" in page.url
    page.locator(".tile-open").click()
    page.click("[data-op=flip]")
    expect(page.locator("#inspect-status")).to_contain_text("384 of 384 bits changed")
    photograph(page, "two-models")
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator(".tile[data-state=done]")).to_have_count(1)
    expect(page.locator("#model-select")).to_have_value("tiny")
    page.goto("about:blank")
    page.goto(link_to(guarded.url, model="gone", seed=1, **{"class": 0}))
    expect(page.locator("#draw-message")).to_contain_text("not served here")
    expect(page.locator(".tile[data-state=done]")).to_have_count(0)


def test_a_rate_limit_is_told_with_the_time_to_wait(visit: Visit, guarded: Running) -> None:
    page = visit(guarded.url, refusals=True)
    enter(page, SLOW_KEY)
    expect(page.locator(".class-button")).to_have_count(16)
    page.fill("#count", "16")
    page.click("#draw")
    message = page.locator("#draw-message")
    expect(message.locator("[role=alert]")).not_to_be_empty()
    retry = message.locator(".retry")
    expect(retry).to_have_text(re.compile(r"Try again in \d s"))
    expect(retry).to_be_disabled()
    photograph(page, "rate-limit")
    expect(retry).to_have_text("Try again")
    expect(retry).to_be_enabled()
