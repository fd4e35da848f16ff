"""The app's tab Networks in Chromium: found, looked at, and changed, as a person would."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from lora_ext.networks.file import scan_network, write_network
from tests.browser.clicking import open_tab

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SCREENSHOTS = Path(__file__).resolve().parents[2] / "test-results"


@pytest.fixture
def birds(app: Any) -> Iterator[Path]:
    """A folder among the app's networks with `owl` and `raven`."""
    folder = app.home / "models" / "Lora" / "birds"
    metadata = {
        "ss_output_name": "owl", "ss_network_dim": "8", "ss_network_alpha": "4", "ss_num_train_images": "20",
        "ss_sd_model_name": "a checkpoint", "modelspec.title": "<b>Owl</b>",
        "ss_tag_frequency": json.dumps({"10_owl": {"owl": 20, "night": 7}}),
    }  # fmt: skip
    for name in ("owl", "raven"):
        write_network(folder / f"{name}.safetensors", {"lora_unet_a.alpha": torch.tensor(4.0)}, metadata, "fp16")
    yield folder
    shutil.rmtree(folder)


def test_networks_by_clicking(page: Page, birds: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "purple").save(tmp_path / "cover.png")

    open_tab(page, "Networks")
    page.locator(".lw-network-row", has_text="raven").wait_for()
    page.locator("#lw-networks-search").fill("birds ow")
    page.locator(".lw-network-row", has_text="raven").wait_for(state="detached")
    page.locator(".lw-network-row", has_text="owl").click()
    card = page.locator("#lw-network-card")
    card.locator("dd", has_text="a checkpoint").wait_for()
    assert card.locator(".lw-frequencies li").all_inner_texts() == ["owl 20", "night 7"]
    title = card.locator('[data-key="modelspec.title"]')
    assert title.input_value() == "<b>Owl</b>"
    assert card.locator("[data-lw-action=save-metadata]").is_disabled()
    title.fill("Owl at night")
    card.locator("[data-lw-action=save-metadata]").click()
    card.locator("td", has_text="Owl at night").wait_for(state="attached")
    assert scan_network(birds / "owl.safetensors").metadata["modelspec.title"] == "Owl at night"
    card.locator('[data-key="preferred weight"]').fill("0.7")
    card.locator("[data-lw-action=save-words]").click()
    page.wait_for_function("document.querySelector('[data-lw-action=save-words]').disabled")
    card.locator("[data-lw-cover]").set_input_files(tmp_path / "cover.png")
    page.wait_for_function("document.querySelector('.lw-cover img')?.naturalWidth === 64")
    page.wait_for_function("document.querySelector('.lw-network-row img')?.naturalWidth === 64")
    assert json.loads((birds / "owl.json").read_text(encoding="utf-8")) == {"preferred weight": 0.7}
    page.screenshot(path=SCREENSHOTS / "networks.png", full_page=True)
    card.locator("button", has_text="Use").click()
    page.wait_for_function("document.querySelector('#lw-generate-prompt textarea').value === '<lora:owl:1>'")
    shutil.copyfile(birds / "raven.safetensors", birds / "owlet.safetensors")
    open_tab(page, "Networks")
    page.locator(".lw-network-row", has_text="owlet").wait_for()
