"""The demo in the WebUI: trained by one click on its page, and judged from the WebUI's own pictures."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from runs import API, ended

from lora_ext.config.train_config import flat_values
from lora_ext.demo.concept import detect_concept
from lora_ext.demo.judge import FIRST_SEED, PROMPT, share
from lora_ext.demo.run import demo_config

if TYPE_CHECKING:
    from conftest import WebUI

pytestmark = [pytest.mark.webui, pytest.mark.browser, pytest.mark.slow, pytest.mark.usefixtures("no_files_left")]

NAME = demo_config().saving.output_name
LONGEST_MS = 1_200_000
SEEDS = 20


def concept_share(webui: WebUI, prompt: str) -> float:
    """Share of twenty seeds that show the house."""
    answer = webui.generate(
        prompt,
        seed=FIRST_SEED,
        width=64,
        height=64,
        steps=20,
        cfg_scale=3.0,
        sampler_name="DDIM",
        batch_size=10,
        n_iter=2,
    )
    pictures = answer.pictures[-SEEDS:]  # a grid may come first
    assert len(pictures) == SEEDS and {picture.shape for picture in pictures} == {(64, 64, 3)}
    return share([detect_concept(Image.fromarray(picture)) for picture in pictures])


def put_settings_before_the_page(webui: WebUI) -> None:
    """A page begins with the latest run's settings, which may be another test's: so the demo's run is the latest."""
    run = webui.call(f"{API}/start", {"settings": flat_values(demo_config())})["id"]
    webui.call(f"{API}/cancel", {"id": run})
    ended(webui, run)


def test_the_demo_by_one_click(webui: WebUI) -> None:
    from playwright.sync_api import sync_playwright

    put_settings_before_the_page(webui)
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(webui.url, wait_until="domcontentloaded")
        page.locator("#tabs > .tab-nav button", has_text="LoRA Workshop").click()
        name = page.locator("#lw-output_name").locator("input, textarea").first
        page.wait_for_function("node => node.value", arg=name.element_handle())
        assert name.input_value() == NAME
        page.locator("#lw-start").click()
        page.locator("#lw-run-state", has_text=re.compile("waiting|training")).wait_for()
        page.locator("#lw-run-state", has_text="finished").wait_for(timeout=LONGEST_MS)
        assert page.locator("#lw-run-name").inner_text() == NAME
        browser.close()
    assert concept_share(webui, f"{PROMPT} <lora:{NAME}:1>") >= 0.8
    assert concept_share(webui, PROMPT) <= 0.05
