"""Samples in the app, and the buttons that carry a network to the generate and the grid panel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.clicking import open_tab

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SCREENSHOTS = Path(__file__).resolve().parents[2] / "test-results"
NAME = "sun"


@pytest.fixture(scope="module")
def sampled(app: Any) -> str:
    """A run of two epochs with a sample of each of two prompts after each; its id."""
    drawn = {"sample_every_n_epochs": 1, "sample_prompts": "a zib --s 2 --d 5\na <b>dog</b> --s 1 --w 64 --h 96"}
    run = app.ask("/start", {"settings": {**app.settings(NAME, 2), "resolution": "64", **drawn}})
    assert app.wait_until_over(run["id"])["state"] == "finished"
    return str(run["id"])


def all_loaded(page: Page, selector: str) -> None:
    page.wait_for_function(
        "selector => [...document.querySelectorAll(selector)].every((image) => image.naturalWidth)", arg=selector
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_samples_stand_in_rows_and_columns(page: Page, app: Any, sampled: str, theme: str) -> None:
    page.goto(f"{app.url}/?__theme={theme}")
    page.locator("#lw-samples .lw-sample").nth(3).wait_for()
    rows = [cell.inner_text() for cell in page.locator("#lw-samples tbody th").all()]
    assert rows == ["a zib", "a <b>dog</b>"]
    columns = [cell.inner_text() for cell in page.locator("#lw-samples thead th").all()]
    assert columns == ["prompt", "epoch 1\nstep 8", "epoch 2\nstep 16"]
    all_loaded(page, ".lw-sample img")
    page.screenshot(path=SCREENSHOTS / f"samples-{theme}.png", full_page=True)
    page.locator("#lw-samples tbody tr").nth(1).locator(".lw-sample").last.click()
    viewer = page.locator("#lw-viewer")
    all_loaded(page, "#lw-viewer img")
    assert viewer.locator("img").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 96]
    infotext = viewer.locator(".lw-infotext").inner_text()
    assert infotext.startswith("a <b>dog</b>\nSteps: 1, ")
    assert infotext.endswith(f"Network in training: {NAME}, Network epoch: 2, Network step: 16")
    page.screenshot(path=SCREENSHOTS / f"sample-{theme}.png")
    page.keyboard.press("Escape")
    viewer.wait_for(state="hidden")


def test_a_sample_is_copied_with_its_tag(page: Page, app: Any, sampled: str) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#lw-samples .lw-sample").first.click()
    page.locator("#lw-viewer button", has_text="Copy").click()
    page.locator("#lw-viewer button", has_text="Copied").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.startswith(f"a zib <lora:{NAME}-000001:1>\nSteps: 2, ")
    page.locator("#lw-viewer button", has_text="Close").click()
    page.locator("#lw-viewer").wait_for(state="hidden")


def test_use_in_generate(page: Page, app: Any, sampled: str) -> None:
    open_tab(page, "Generate")
    prompt = page.locator("#lw-generate-prompt textarea")
    prompt.fill(f"a zib <lora:{NAME}:0.5>")
    open_tab(page, "Train")
    page.locator("#lw-saved li", has_text=f"{NAME}-000001").locator("button", has_text="Use").click()
    page.wait_for_function(
        "text => document.querySelector('#lw-generate-prompt textarea').value === text",
        arg=f"a zib <lora:{NAME}-000001:0.5>",
    )
    assert prompt.is_visible()


def test_a_run_whose_name_ends_like_an_epoch(page: Page, app: Any) -> None:
    """It is another run than that of the name without the number, and its epochs are found."""
    run = app.ask("/start", {"settings": app.settings("sea-202611", 2)})
    assert app.wait_until_over(run["id"])["state"] == "finished"
    page.locator("#lw-saved li", has_text="<lora:sea-202611:1>").wait_for()
    assert "epochs 1, last × weights" in page.locator("#lw-try-buttons").inner_text()
    open_tab(page, "Generate")
    page.locator("#lw-generate-prompt textarea").fill("a zib <lora:sea:0.5>")
    for file, expected in (
        ("sea-202611-000001", "a zib <lora:sea:0.5> <lora:sea-202611-000001:1>"),
        ("sea-202611", "a zib <lora:sea:0.5> <lora:sea-202611:1>"),
    ):
        open_tab(page, "Train")
        saved = page.locator("#lw-saved li").filter(has=page.get_by_text(f"<lora:{file}:1>", exact=True))
        saved.locator("button", has_text="Use").click()
        page.wait_for_function(
            "text => document.querySelector('#lw-generate-prompt textarea').value === text", arg=expected
        )


def test_the_grid_of_a_run_in_one_click(page: Page, app: Any, sampled: str) -> None:
    open_tab(page, "Runs")
    page.locator("#lw-runs tr", has_text=NAME).locator("button", has_text="Open").click()
    page.locator("#lw-run-detail .lw-sample").nth(3).wait_for()
    page.locator("#lw-run-detail button", has_text="Epoch × weight grid").click()
    page.locator("#lw-grid").wait_for()
    page.wait_for_selector("#lw-run-detail button[data-lw-action='plot-network']:enabled", state="attached")
    assert page.locator("#lw-grid-network input").input_value() == NAME
    assert page.locator("#lw-grid-epochs input").input_value() == "1, last"
    assert page.locator("#lw-grid-weights input").input_value() == "0.4, 0.6, 0.8, 1"
    page.locator("#lw-grid-prompt textarea").fill("a zib")
    page.locator("#lw-grid-steps input[type=number]").fill("1")
    page.locator("#lw-grid").click()
    page.wait_for_selector("#lw-grid-result img")
    assert len(list((app.home / "images" / "grids").glob(f"*-{NAME}.png"))) == 1


def test_sample_now(page: Page, app: Any) -> None:
    run = app.ask("/start", {"settings": app.settings("now", 5000)})
    button = page.locator("#lw-sample")
    page.wait_for_selector("#lw-sample:enabled")
    button.click()
    page.locator("#lw-samples .lw-sample").first.wait_for()
    assert "the first caption is drawn" in page.locator("#lw-messages").inner_text()
    app.ask("/cancel", {"id": run["id"]})
    assert app.wait_until_over(run["id"])["state"] == "stopped"
    page.wait_for_selector("#lw-sample:disabled")
