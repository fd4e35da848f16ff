"""The tab in the WebUI's page, in Chromium: a run filled in, started and watched; pictures of it in both themes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pages import page_closed_in_order
from runs import API, SMALL, draw_dataset, ended, start, wait_for

if TYPE_CHECKING:
    from conftest import WebUI
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.webui, pytest.mark.browser]

NAME = "lw-test-tab"
PATIENCE = int(os.environ.get("BROWSER_PATIENCE_MS", "120000"))
CHOSEN = "title => document.querySelector('#setting_sd_model_checkpoint input')?.value === title"
SCREENSHOTS = Path(__file__).resolve().parents[2] / "test-results"


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Browser, webui: WebUI) -> Iterator[Page]:
    with page_closed_in_order(browser, viewport={"width": 1280, "height": 900}) as opened:
        opened.set_default_timeout(PATIENCE)
        opened.theme, opened.told = request.param, []
        opened.on("pageerror", lambda error: opened.told.append(f"error: {error}"))
        opened.on(
            "console", lambda told: opened.told.append(f"{told.text} {told.location}") if told.type == "error" else 0
        )
        opened.goto(f"{webui.url}/?__theme={request.param}", wait_until="domcontentloaded", timeout=PATIENCE)
        opened.locator("#tabs > .tab-nav button", has_text="LoRA Workshop").click()
        yield opened
    for file in webui.networks.glob(f"{NAME}*"):
        file.unlink()


def fill(page: Page, setting: str, value: Any) -> None:
    group = page.locator(f".lw-group:has(#lw-{setting})")
    if group.count() and not page.locator(f"#lw-{setting}").is_visible():
        group.locator("summary").click()
    page.locator(f"#lw-{setting}").locator("input, textarea").first.fill(str(value))


def fill_in_a_run(page: Page, dataset: Path, **settings: Any) -> None:
    usual = {**SMALL, "output_name": NAME, "train_data_dir": dataset, "sample_prompts": "",
             "save_last_n_epochs": "", "save_every_n_epochs": 1}  # fmt: skip
    for setting, value in {**usual, **settings}.items():
        if setting not in ("seed", "mixed_precision"):
            fill(page, setting, value)


def value_of(page: Page, selector: str) -> str:
    return str(page.locator(selector).locator("input, textarea").first.input_value())


def test_reload_ui_while_the_page_asks(page: Any, webui: WebUI) -> None:
    """An open page neither ends the WebUI's start nor gets lost: it asks again by itself."""
    base = webui.generate("a house").pictures[0]
    for _ in range(2):
        page.evaluate("() => { for (let i = 1; i < 40; i++) setTimeout(window.loraWorkshop.poll, 100 * i); }")
        webui.reload_ui()
        page.evaluate("() => window.loraWorkshop.poll()")
        page.locator("#lw-control-error:empty").wait_for(state="attached")
    assert (webui.generate("a house").pictures[0] == base).all()


def test_a_run_by_clicking(page: Any, webui: WebUI, tmp_path: Path) -> None:
    dataset = draw_dataset(tmp_path / "pictures")
    fill_in_a_run(page, dataset, max_train_epochs=40)
    page.locator("#lw-look").click()
    page.locator("#lw-report", has_text="3 pictures").first.wait_for()
    assert page.locator("#lw-report figure img").count() == 3
    page.locator("#lw-plan", has_text="120 steps").first.wait_for()
    page.locator("#lw-start").click()
    page.locator("#lw-run-state", has_text="training").wait_for()  # until then the last run is shown
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


def test_pause_and_resume_by_clicking(page: Any, webui: WebUI, other_checkpoint: str, tmp_path: Path) -> None:
    own = webui.call("/sdapi/v1/options")["sd_model_checkpoint"]
    run = start(webui, draw_dataset(tmp_path / "pictures"), NAME, max_train_epochs=400, save_every_n_epochs=400)
    page.locator("#lw-run-facts", has_text=re.compile(r"step [\d,]+ / 1,200")).wait_for()
    page.locator("#lw-pause", has_text="Pause").click()
    page.locator("#lw-run-state", has_text="paused").wait_for()
    page.locator("#lw-run-note", has_text="the checkpoint is free until Resume").wait_for()
    assert page.locator("#lw-paused code").inner_text() == f"<lora:{NAME}-live:1>"
    page.locator("#lw-pause", has_text="Resume").click()
    page.locator("#lw-run-state", has_text="training").wait_for()
    page.locator("#lw-paused").wait_for(state="hidden")

    page.locator("#lw-pause", has_text="Pause").click()
    page.locator("#lw-run-state", has_text="paused").wait_for()
    webui.set_options(sd_model_checkpoint=other_checkpoint)
    page.reload(wait_until="domcontentloaded")
    page.locator("#tabs > .tab-nav button", has_text="LoRA Workshop").click()
    page.wait_for_function(f"title => !({CHOSEN})(title)", arg=own)
    page.locator("#lw-pause", has_text="Resume").click()
    load = page.locator("#lw-load-and-resume", has_text="and resume")
    load.wait_for()
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"webui-paused-{page.theme}.png", full_page=True)
    load.click()
    page.locator("#lw-run-state", has_text="training").wait_for()
    assert webui.call("/sdapi/v1/options")["sd_model_checkpoint"] == own
    wait_for(webui, run, lambda status: status["record"]["state"] == "running")
    page.wait_for_function(CHOSEN, arg=own)
    webui.call(f"{API}/cancel", {"id": run})
    assert ended(webui, run)["state"] == "stopped"


def test_from_samples_to_the_xyz_plot(page: Any, webui: WebUI, tmp_path: Path) -> None:
    """Samples appear, one goes to txt2img, and one click makes the epoch × weight plot, which is then generated."""
    prompts = "a thing --s 4 --d 5 --n blue\na house --s 4"
    drawn = {"sample_every_n_epochs": 1, "save_every_n_epochs": 1, "sample_prompts": prompts, "max_train_epochs": 3}
    fill_in_a_run(page, draw_dataset(tmp_path / "pictures"), **drawn)
    page.locator("#lw-start").click()
    page.locator("#lw-run-state", has_text="finished").wait_for()
    page.wait_for_function("document.querySelectorAll('#lw-samples .lw-sample img').length === 6")
    page.wait_for_function("[...document.querySelectorAll('.lw-sample img')].every((image) => image.naturalWidth)")
    page.screenshot(path=SCREENSHOTS / f"webui-samples-{page.theme}.png", full_page=True)
    page.locator("#lw-samples tbody tr").first.locator(".lw-sample").nth(1).click()
    page.locator("#lw-viewer img").wait_for()
    page.screenshot(path=SCREENSHOTS / f"webui-sample-{page.theme}.png")
    page.locator("#lw-viewer button", has_text="Send to txt2img").click()
    page.wait_for_function("document.querySelector('#txt2img_seed input').value === '5'")
    assert value_of(page, "#txt2img_prompt") == f"a thing <lora:{NAME}-000002:1>"
    assert value_of(page, "#txt2img_neg_prompt") == "blue" and value_of(page, "#txt2img_width") == "64"
    page.locator("#tabs > .tab-nav button", has_text="LoRA Workshop").click()
    page.locator("#lw-try-buttons button", has_text="X/Y/Z plot").click()
    page.wait_for_selector("#lw-try-buttons button[data-lw-action='plot-network']:enabled", state="attached")
    assert page.locator("#lw-try-note").text_content() == ""
    plot = "#script_txt2img_xyz_plot_"
    assert value_of(page, "#txt2img_prompt") == f"a thing <lora:{NAME}:1>"
    shown = {name: value_of(page, plot + name) for name in ("x_type", "x_values", "y_type", "y_values", "z_type")}
    assert shown == {
        "x_type": "[LoRA] Epoch", "x_values": "None, 1, 2, last", "y_type": "[LoRA] Weight",
        "y_values": "0.4, 0.6, 0.8, 1", "z_type": "Nothing",
    }  # fmt: skip
    page.locator("#txt2img_generate").click()
    page.locator("#txt2img_gallery img").first.wait_for()
    page.screenshot(path=SCREENSHOTS / f"webui-plot-{page.theme}.png", full_page=True)
    size = page.locator("#txt2img_gallery img").first.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert size[0] > 4 * 64 and size[1] > 4 * 64


def test_a_saved_file_goes_to_txt2img(page: Any, webui: WebUI, tmp_path: Path) -> None:
    fill_in_a_run(page, draw_dataset(tmp_path / "pictures"), save_every_n_epochs=1)
    page.locator("#lw-start").click()
    page.locator("#lw-run-state", has_text="finished").wait_for()
    prompt = page.locator("#txt2img_prompt textarea")
    for before, after in (
        ("", f"a thing, number 0 <lora:{NAME}-000001:1>"),  # the first caption
        ("a house", f"a house <lora:{NAME}-000001:1>"),
        (f"a <lora:{NAME}:0.7> house <lora:other:1>", f"a <lora:{NAME}-000001:0.7> house <lora:other:1>"),
    ):
        page.locator("#tabs > .tab-nav button", has_text="txt2img").click()
        prompt.fill(before)
        page.locator("#tabs > .tab-nav button", has_text="LoRA Workshop").click()
        page.locator("#lw-saved li", has_text=f"{NAME}-000001").locator("button", has_text="Use").click()
        page.wait_for_function("text => document.querySelector('#txt2img_prompt textarea').value === text", arg=after)
        assert prompt.is_visible()
    page.locator("#txt2img_extra_tabs > .tab-nav button", has_text="Lora").click()
    page.locator("#txt2img_lora_cards .card", has_text=f"{NAME}-000001").first.wait_for()
