"""The form in Chromium: finding settings, presets, import and export, problems beside their fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.clicking import fill

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def wait_for_text(locator: Locator, words: str) -> None:
    locator.filter(has_text=words).first.wait_for()


VISIBLE = "#lw-groups .lw-field:visible"


def value(page: Page, setting: str) -> str:
    return str(page.locator(f"#lw-field-{setting}").input_value())


def settings_shown(page: Page) -> list[str]:
    found: list[str] = page.locator(VISIBLE).evaluate_all("fields => fields.map((field) => field.dataset.name)")
    return found


def test_finding_settings(page: Page) -> None:
    assert settings_shown(page) == []  # everything but the few at the top is folded
    page.locator("#lw-search").fill("snr gamma")
    assert settings_shown(page) == ["min_snr_gamma"]
    page.locator("#lw-search").fill("dataset_repeats")  # a name of sd-scripts
    assert settings_shown(page) == ["num_repeats"]
    page.locator("#lw-search").fill("xyzzy")
    assert page.locator("#lw-no-match").is_visible()
    page.locator("#lw-search").fill("")
    assert settings_shown(page) == []
    page.locator("#lw-all-settings").check()
    assert len(settings_shown(page)) > 100
    fill(page, "keep_tokens", "2")
    page.locator("#lw-changed-only").check()
    assert "keep_tokens" in settings_shown(page) and "seed" not in settings_shown(page)


def test_a_problem_stands_beside_its_field(page: Page) -> None:
    page.locator("#lw-group-learning summary").click()
    fill(page, "seed", "x")
    wait_for_text(page.locator("#lw-seed .lw-field-error"), "seed = 'x': allowed is a whole number from 0")
    assert page.locator("#lw-field-seed").get_attribute("aria-invalid") == "true"
    assert page.locator("#lw-group-learning .lw-group-note").inner_text() == "1 to put right"
    fill(page, "seed", "7")
    page.locator("#lw-seed.lw-wrong").wait_for(state="detached")


def test_presets(page: Page) -> None:
    page.locator(".lw-kind", has_text="Character").click()
    page.wait_for_function("document.querySelector('#lw-field-keep_tokens').value === '1'")
    page.locator(".lw-kind", has_text="Style").click()
    page.wait_for_function("document.querySelector('#lw-field-keep_tokens').value === '0'")
    assert value(page, "conv_dim") != ""
    fill(page, "network_dim", "48")
    page.get_by_text("Save preset", exact=True).click()
    page.locator("#lw-preset-name").fill("my own")
    page.locator("button[data-lw-action='save-preset']").click()
    page.locator("#lw-exchange").wait_for(state="hidden")
    fill(page, "network_dim", "4")
    page.locator("#lw-preset").select_option("")
    page.locator("#lw-preset").select_option("my own")
    page.wait_for_function("document.querySelector('#lw-field-network_dim').value === '48'")


def test_import_and_export(page: Page, tmp_path: Path) -> None:
    fill(page, "output_name", "mine")
    source = tmp_path / "old.toml"
    source.write_text("network_dim = 8\nunet_lr = 1e-3\nno_such_option = 1\n", encoding="utf-8")
    page.get_by_text("Import", exact=True).click()
    page.locator("#lw-import-file").set_input_files(source)
    page.wait_for_function("document.querySelector('#lw-import-text').value.includes('unet_lr')")
    page.locator("button[data-lw-action='import']").click()
    wait_for_text(page.locator("#lw-exchange"), "no_such_option")
    assert (value(page, "network_dim"), value(page, "unet_lr"), value(page, "output_name")) == ("8", "1e-3", "mine")
    page.get_by_text("Export", exact=True).click()
    page.locator("#lw-export-text").wait_for()
    assert "network_dim = 8" in page.locator("#lw-export-text").input_value()
    page.get_by_text("For sd-scripts", exact=True).click()
    page.get_by_text("Export: a TOML file for sd-scripts").wait_for()
    with page.expect_download() as download:
        page.locator("#lw-exchange a").click()
    assert download.value.suggested_filename == "mine-sd-scripts.toml"
    assert "unet_lr = 0.001" in Path(download.value.path()).read_text(encoding="utf-8")


def test_what_is_typed_before_the_last_run_is_shown_stays(page: Page) -> None:
    """A slow program answers late with the last run's settings; by then somebody may have begun."""
    waiting: list[Route] = []
    page.route(re.compile(r"/form\?run=$"), lambda route: waiting.append(route))
    page.reload()
    page.locator("#lw-field-output_name").fill("mine")
    for _ in range(100):
        if waiting:
            break
        page.wait_for_timeout(100)
    with page.expect_response(re.compile(r"/form\?run=$")):
        waiting[0].continue_()
    page.wait_for_timeout(500)
    assert value(page, "output_name") == "mine"
