"""The app in Chromium: everything by clicking, as a person would."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.clicking import fill, open_tab

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SCREENSHOTS = Path(__file__).resolve().parents[2] / "test-results"


def wait_for_text(locator: Locator, pattern: str, timeout: float = 180) -> str:
    """The locator's text as soon as the pattern is in it."""
    text = ""
    ends = time.monotonic() + timeout
    while time.monotonic() < ends:
        text = locator.inner_text()
        if re.search(pattern, text):
            return text
        time.sleep(0.1)
    raise AssertionError(f"{pattern!r} did not come, there is {text!r}")


def fill_in_a_run(page: Page, app: Any, name: str, epochs: int) -> None:
    page.locator("#lw-group-dataset summary").click()
    for setting, value in app.settings(name, epochs).items():
        if setting != "train_data_dir":
            fill(page, setting, str(value))
    page.locator("#lw-group-dataset summary").click()
    fill(page, "train_data_dir", str(app.pictures))
    page.locator("#lw-look").click()


def steps_of(text: str) -> int:
    return int(re.search(r"step ([\d,]+) /", text).group(1).replace(",", ""))  # type: ignore[union-attr]


def test_a_run_by_clicking(page: Page, app: Any) -> None:
    fill_in_a_run(page, app, "zib", 500)
    report = wait_for_text(page.locator("#lw-report").first, "8 pictures")
    assert "7 captions (1 without) · 1 size" in report
    assert "a zib, number 3, <b>bold</b>" in report
    assert page.locator("#lw-report figure img").count() == 8
    plan = wait_for_text(page.locator("#lw-plan").first, "500 epochs")
    assert "= 8 steps × 500 epochs = 4,000 steps" in plan
    page.screenshot(path=SCREENSHOTS / "1-before-start.png", full_page=True)
    page.locator("#lw-start").click()
    facts = page.locator("#lw-run-facts")
    wait_for_text(facts, r"step [\d,]+ / 4,000 · epoch \d+ of 500 .* left · loss \d")
    page.wait_for_selector("#lw-saved li")
    page.wait_for_selector("#lw-chart svg .lw-chart-line", state="attached")
    before = {name: page.locator(name).first.bounding_box() for name in ("#lw-start", "#lw-chart", "#lw-run-facts")}
    page.screenshot(path=SCREENSHOTS / "2-training.png", full_page=True)
    steps = steps_of(facts.inner_text())
    wait_for_text(facts, rf"step (?!{steps:,} )")
    after = {name: page.locator(name).first.bounding_box() for name in before}
    assert [box["y"] for box in after.values()] == [box["y"] for box in before.values()]  # nothing jumps

    page.reload()
    wait_for_text(page.locator("#lw-run-state"), "training")
    assert page.locator("#lw-run-name").inner_text() == "zib"
    assert steps_of(wait_for_text(facts, r"step [\d,]+ /")) >= steps
    wait_for_text(page.locator("#lw-plan").first, "4,000 steps")
    assert page.locator("#lw-output_name input").input_value() == "zib"
    page.screenshot(path=SCREENSHOTS / "3-after-reload.png", full_page=True)

    queue_a_second_run(page)
    refuse_pictures_meanwhile(page)
    open_tab(page, "Train")
    page.locator("#lw-save").click()
    wait_for_text(page.locator("#lw-saved"), r"<lora:zib-step\d{8}:1>")
    page.locator("#lw-stop").click()
    wait_for_text(page.locator("#lw-run-state"), "stopped")
    wait_for_text(page.locator("#lw-saved"), r"<lora:zib:1>")
    assert "what was trained is kept" in page.locator("#lw-run-note").inner_text()
    assert page.locator("#lw-stop").is_disabled()
    page.screenshot(path=SCREENSHOTS / "4-stopped.png", full_page=True)


def test_pause_and_resume(page: Page, app: Any) -> None:
    run = app.ask("/start", {"settings": app.settings("pausing", 500)})["id"]
    facts = page.locator("#lw-run-facts")
    wait_for_text(facts, r"step [\d,]+ / 4,000")
    page.locator("#lw-pause").click()
    wait_for_text(page.locator("#lw-run-state"), "paused")
    wait_for_text(page.locator("#lw-run-note"), r"paused after \d+ steps; the checkpoint is free until Resume")
    assert page.locator("#lw-paused code").inner_text() == "<lora:pausing-live:1>"
    page.screenshot(path=SCREENSHOTS / "10-paused.png", full_page=True)
    says_why_the_network_does_nothing(page)
    steps = steps_of(facts.inner_text())
    open_tab(page, "Generate")
    page.locator("#lw-generate-prompt textarea").fill("a zib <lora:pausing-live:1>")
    page.locator("#lw-generate-steps input[type=number]").fill("2")
    page.locator("#lw-generate").click()
    page.wait_for_selector("#lw-generate-result .lw-gallery img")
    assert 'Lora hashes: "pausing-live: ' in page.locator("#lw-generate-result .lw-infotext").inner_text()
    open_tab(page, "Train")
    assert steps_of(facts.inner_text()) == steps
    page.locator("#lw-pause", has_text="Resume").click()
    wait_for_text(page.locator("#lw-run-state"), "training")
    page.locator("#lw-paused").wait_for(state="hidden")
    assert steps_of(wait_for_text(facts, r"step [\d,]+ / 4,000")) >= steps
    app.ask("/cancel", {"id": run})
    assert app.wait_until_over(run)["state"] == "stopped"


def says_why_the_network_does_nothing(page: Page) -> None:
    """As in a WebUI that leaves tags to its built-in; here no tag is left to anybody."""
    assert page.locator("#lw-paused .lw-warning").count() == 0
    status = "**/lora-workshop/api/status*"
    problem = {"live_network_problem": "tags are left to somebody"}
    page.route(status, lambda route: route.fulfill(json={**route.fetch().json(), **problem}))
    wait_for_text(page.locator("#lw-paused .lw-warning"), "does nothing: tags are left to somebody")
    page.screenshot(path=SCREENSHOTS / "11-paused-in-vain.png", full_page=True)
    page.unroute(status)
    page.locator("#lw-paused .lw-warning").wait_for(state="detached")


def queue_a_second_run(page: Page) -> None:
    fill(page, "output_name", "second")
    page.locator("#lw-start").click()
    wait_for_text(page.locator("#lw-queue"), "second waits for zib to end, then starts by itself")
    page.locator("#lw-queue button", has_text="Take out").click()
    page.wait_for_function("document.querySelectorAll('#lw-queue li').length === 0")


def refuse_pictures_meanwhile(page: Page) -> None:
    open_tab(page, "Generate")
    page.locator("#lw-generate-prompt textarea").fill("a zib")
    page.locator("#lw-generate").click()
    wait_for_text(page.locator("#lw-generate-result .lw-errors"), "zib is in training on this checkpoint")


def test_what_is_wrong_stands_beside_the_plan(page: Page) -> None:
    fill(page, "train_data_dir", "/no/such/folder")
    page.locator("#lw-start").click()
    wait_for_text(page.locator("#lw-plan .lw-errors"), "there is no such folder")
    fill(page, "network_dim", "0")
    fill(page, "learning_rate", "fast")
    page.locator("#lw-start").click()
    text = wait_for_text(page.locator("#lw-plan .lw-errors"), "learning_rate = 'fast'")
    assert "network_dim = '0': allowed is a whole number from 1 to 1024" in text
    color = "getComputedStyle(document.querySelector('#lw-plan .lw-errors li')).color"
    page.wait_for_function(f"{color} === 'rgb(200, 30, 30)'")
    assert page.locator(".toast-body").count() == 0
    assert page.locator("#lw-run-state").inner_text() != "training"
    page.screenshot(path=SCREENSHOTS / "5-errors.png", full_page=True)


def test_generate(page: Page, trained: str) -> None:
    open_tab(page, "Generate")
    page.locator("#lw-generate-prompt textarea").fill(f"a zib <lora:{trained}:0.8> <lora:nowhere:1>")
    page.locator("#lw-generate-steps input[type=number]").fill("3")
    page.locator("#lw-generate-seed input").fill("5")
    page.locator("#lw-generate").click()
    page.wait_for_selector("#lw-generate-result .lw-gallery img")
    infotext = page.locator("#lw-generate-result .lw-infotext").inner_text()
    assert "Steps: 3, Sampler: Euler a" in infotext
    assert "Seed: 5, Size: 64x64" in infotext
    assert f'Lora hashes: "{trained}: ' in infotext
    wait_for_text(page.locator("#lw-generate-result .lw-warnings"), "nowhere")
    pictures = page.locator("#lw-generate-result .lw-gallery img")
    assert pictures.count() == 4
    page.wait_for_function("[...document.querySelectorAll('.lw-gallery img')].every(i => i.complete && i.naturalWidth)")
    assert pictures.first.evaluate("image => [image.naturalWidth, image.clientWidth >= 180]") == [64, True]
    page.screenshot(path=SCREENSHOTS / "6-generate.png", full_page=True)
    page.locator("#lw-generate-seed input").fill("")
    page.locator("#lw-generate").click()
    wait_for_text(page.locator("#lw-generate-result .lw-errors"), "seed is empty: give a whole number")


def test_grid(page: Page, app: Any, trained: str) -> None:
    open_tab(page, "Grid")
    network = page.locator("#lw-grid-network input")
    network.fill(trained)
    network.press("Enter")
    fill(page, "grid-epochs", "1, last")
    fill(page, "grid-weights", "0.5-1 (+0.5)")
    page.locator("#lw-grid-prompt textarea").fill("a zib")
    page.locator("#lw-grid-steps input[type=number]").fill("2")
    page.locator("#lw-grid").click()
    page.wait_for_selector("#lw-grid-result img")
    page.wait_for_function("document.querySelector('#lw-grid-result img').naturalWidth > 0")
    assert len(list((app.home / "images" / "grids").glob("*-moon.png"))) == 1
    page.screenshot(path=SCREENSHOTS / "7-grid.png", full_page=True)
    fill(page, "grid-epochs", "1, 7")
    page.locator("#lw-grid").click()
    wait_for_text(
        page.locator("#lw-grid-result .lw-errors"), "moon has no file of epoch 7: there are 1, 2, 3, and last"
    )


def test_past_runs(page: Page, trained: str) -> None:
    open_tab(page, "Runs")
    row = page.locator("#lw-runs tr", has_text=trained)
    wait_for_text(row, "finished")
    row.get_by_text("Open").click()
    page.wait_for_selector("#lw-run-detail svg .lw-chart-dots", state="attached")
    assert "<lora:moon-000001:1>" in page.locator("#lw-run-detail").inner_text()
    page.screenshot(path=SCREENSHOTS / "8-runs.png", full_page=True)
    page.locator("#lw-run-detail button", has_text="Use these settings").click()
    page.wait_for_function("document.querySelector('#lw-output_name input').value === 'moon'")
    assert page.locator("#lw-max_train_epochs input").input_value() == "3"
    assert page.locator("#lw-start").is_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 700, 420])
def test_looks(page: Page, app: Any, trained: str, theme: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{app.url}/?__theme={theme}")
    wait_for_text(page.locator("#lw-run-state"), ".")
    for title in ("Train", "Generate", "Grid", "Runs"):
        open_tab(page, title)
        page.wait_for_timeout(300)
        overflow = page.evaluate("document.scrollingElement.scrollWidth - window.innerWidth")
        assert overflow <= 0, title
    open_tab(page, "Train")
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / f"9-{theme}-{width}.png", full_page=True)


def test_fields_are_reached_by_keyboard(page: Page) -> None:
    page.locator("#lw-train_data_dir input").focus()
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.closest('[id^=lw-]')?.id"))
    assert reached[0] == "lw-look"
    assert "lw-field-output_name" in reached
