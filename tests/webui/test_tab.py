"""The tab in the WebUI's page, in Chromium: a run filled in, started and watched; pictures of it in both themes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runs import SMALL, draw_dataset

if TYPE_CHECKING:
    from conftest import WebUI
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.webui, pytest.mark.browser]

NAME = "lw-test-tab"
PATIENCE = int(os.environ.get("BROWSER_PATIENCE_MS", "120000"))
SCREENSHOTS = Path(__file__).resolve().parents[2] / "test-results"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Browser, webui: WebUI) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(PATIENCE)
    opened.theme, opened.told = request.param, []
    opened.on("pageerror", lambda error: opened.told.append(f"error: {error}"))
    opened.on("console", lambda told: opened.told.append(f"{told.text} {told.location}") if told.type == "error" else 0)
    opened.goto(f"{webui.url}/?__theme={request.param}", wait_until="domcontentloaded", timeout=PATIENCE)
    opened.locator("#tabs > .tab-nav button", has_text="LoRA Workshop").click()
    yield opened
    opened.close()
    for file in webui.networks.glob(f"{NAME}*"):
        file.unlink()


def fill(page: Page, setting: str, value: Any) -> None:
    group = page.locator(f".lw-group:has(#lw-{setting})")
    if group.count() and not page.locator(f"#lw-{setting}").is_visible():
        group.locator(".label-wrap").click()
    page.locator(f"#lw-{setting}").locator("input, textarea").first.fill(str(value))


def test_a_run_by_clicking(page: Any, webui: WebUI, tmp_path: Path) -> None:
    dataset = draw_dataset(tmp_path / "pictures")
    for setting, value in {**SMALL, "output_name": NAME, "train_data_dir": dataset, "max_train_epochs": 40}.items():
        if setting not in ("seed", "mixed_precision"):
            fill(page, setting, value)
    page.locator("#lw-look").click()
    page.locator("#lw-report", has_text="3 pictures").first.wait_for()
    assert page.locator("#lw-report figure img").count() == 3
    page.locator("#lw-plan", has_text="120 steps").first.wait_for()
    page.locator("#lw-start").click()
    page.locator("#lw-run-facts", has_text=re.compile(r"step [3-9] / 120")).wait_for()
    page.locator("#lw-saved li").first.wait_for()
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"webui-tab-{page.theme}.png", full_page=True)
    page.locator("#lw-stop").click()
    page.locator("#lw-run-state", has_text="stopped").wait_for()
    assert (webui.networks / f"{NAME}.safetensors").is_file()
    page.reload(wait_until="domcontentloaded")
    page.locator("#tabs > .tab-nav button", has_text="LoRA Workshop").click()
    page.locator("#lw-run-state", has_text="stopped").wait_for()
    assert page.locator("#lw-run-name").inner_text() == NAME
    kept = page.locator("#lw-output_name").locator("input, textarea").first
    page.wait_for_function("([node, name]) => node.value === name", arg=[kept.element_handle(), NAME])
    assert [told for told in page.told if told.startswith("error")] == []


def test_reload_ui_while_the_page_asks(page: Any, webui: WebUI) -> None:
    """An open page neither ends the WebUI's start nor gets lost: it asks again by itself."""
    base = webui.generate("a house").pictures[0]
    for _ in range(2):
        page.evaluate("() => { for (let i = 1; i < 40; i++) setTimeout(window.loraWorkshop.poll, 100 * i); }")
        webui.reload_ui()
        page.locator("#lw-control-error:not(:empty)").wait_for(state="attached", timeout=10_000)
        page.evaluate("() => window.loraWorkshop.poll()")
        page.locator("#lw-control-error:empty").wait_for(state="attached")
    assert (webui.generate("a house").pictures[0] == base).all()
