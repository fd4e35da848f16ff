"""The app's tab Files in Chromium: a network previewed, merged, compared, and a work that is cancelled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lora_ext.checkpoint.file_weights import open_checkpoint_file
from lora_ext.merge.tools import MODULES
from lora_ext.networks.file import write_network
from tests.browser.clicking import open_tab

if TYPE_CHECKING:
    from playwright.sync_api import APIResponse, Locator, Page, Route

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SCREENSHOTS = Path(__file__).resolve().parents[2] / "test-results"


@pytest.fixture
def moons(app: Any, tiny_checkpoint_path: Path) -> Iterator[Path]:
    """The app's folder of networks with `half-moon` and `full-moon`, each of rank 4."""
    folder: Path = app.home / "models" / "Lora"
    for seed, name in enumerate(("half-moon", "full-moon")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for key, view in open_checkpoint_file(tiny_checkpoint_path).weights.items():
            if "attn" in key:
                out, inner = view.parameter.shape[:2]
                scales = torch.tensor([1.0, 0.3, 0.1, 0.03])
                tensors[f"{key}.lora_up.weight"] = torch.randn(out, 4, generator=generator) * scales
                tensors[f"{key}.lora_down.weight"] = torch.randn(4, inner, generator=generator)
        write_network(folder / f"{name}.safetensors", tensors, {"ss_base_model_version": "sd_v1"}, "fp16")
    yield folder
    for path in folder.glob("*-moon*"):
        path.unlink()


def open_tool(page: Page, name: str) -> Locator:
    open_tab(page, "Files")
    page.locator(f".lw-kind[data-tool={name}]").click()
    form = page.locator(f".lw-tool[data-tool={name}]")
    form.wait_for()
    return form


def test_two_networks_become_one_by_clicking(page: Page, moons: Path) -> None:
    form = open_tool(page, "merge-networks")
    for name in ("half-moon", "full-moon"):
        form.locator(".lw-add-network").fill(name)
        form.locator(".lw-add-network").press("Enter")
        form.locator(".lw-add-network").blur()
    assert form.locator("[name=network]").input_value() == "half-moon:1\nfull-moon:1"
    assert form.locator("[name=out]").input_value() == "half-moon-merge-networks.safetensors"
    form.locator("[name=rank]").fill("2")
    form.locator("[name=method]").select_option("svd")
    form.locator("[data-lw-action=preview-tool]").click()
    page.locator(".lw-tool-report[data-preview=true] .lw-spectra figure", has_text="MID").wait_for()
    assert not (moons / "half-moon-merge-networks.safetensors").exists()
    for theme, width in (("light", 1280), ("dark", 1280), ("light", 640)):
        page.evaluate("theme => document.body.classList.toggle('dark', theme === 'dark')", theme)
        page.set_viewport_size({"width": width, "height": 900})
        page.screenshot(path=SCREENSHOTS / f"files-{theme}-{width}.png", full_page=True)
    page.set_viewport_size({"width": 1280, "height": 900})

    form.locator("[data-lw-action=run-tool]").click()
    page.locator(".lw-tool-report[data-preview=false] .lw-tool-files", has_text="wrote").wait_for()
    assert (moons / "half-moon-merge-networks.safetensors").is_file()
    page.reload()
    open_tab(page, "Files")
    page.locator(".lw-tool-files", has_text="wrote").wait_for()  # a page that is opened anew shows the last work
    assert form.locator("[name=rank]").input_value() == "2"
    page.locator("[data-lw-action=compare-networks]").click()
    page.wait_for_function(
        "document.querySelector('#lw-grid-network input').value === 'half-moon, full-moon, half-moon-merge-networks'"
    )


def test_every_tool_has_its_form(page: Page) -> None:
    open_tab(page, "Files")
    kinds = page.locator("#lw-files .lw-kind")
    assert [kind.get_attribute("data-tool") for kind in kinds.all()] == list(MODULES)
    kinds.first.focus()
    for name in [*list(MODULES)[1:], next(iter(MODULES))]:
        page.keyboard.press("ArrowRight")
        page.locator(f".lw-tool[data-tool={name}]").wait_for()
        assert page.locator("#lw-files .lw-tool:visible").count() == 1
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('#lw-files :is(input, select, textarea)')]"
        ".filter((each) => !each.labels.length && !each.ariaLabel).map((each) => each.id)"
    )
    assert unnamed == []


def test_a_card_opens_a_tool_with_its_network(page: Page, moons: Path) -> None:
    open_tab(page, "Networks")
    page.locator(".lw-network-row", has_text="full-moon").click()
    page.locator("#lw-network-card button", has_text="Check …").click()
    form = page.locator(".lw-tool[data-tool=check]")
    form.wait_for()
    assert form.locator("[name=files]").input_value() == str(moons / "full-moon.safetensors")
    form.locator("[data-lw-action=run-tool]").click()
    page.locator(".lw-tool-report h4 .lw-pill", has_text="healthy").wait_for()


def test_what_is_wrong_stands_beside_its_field(page: Page, moons: Path) -> None:
    form = open_tool(page, "resize")
    form.locator("[name=rank]").fill("2")
    for name, value, words in (
        ("files", "half-moon\nnew-moon", "'new-moon': there is no such network"),
        ("out", "full-moon.safetensors", "full-moon.safetensors is there already"),
        ("out", "full-moon.ckpt", "files are written as .safetensors"),
        ("recipe", "fro_ckpt=1,thr=-3", "recipe = 'fro_ckpt=1,thr=-3'"),
    ):
        form.locator("[name=files]").fill("half-moon")
        form.locator("[name=out]").fill("small.safetensors")
        form.locator(f"[name={name}]").fill(value)
        if name == "recipe":
            form.locator("[name=rank]").fill("")
        form.locator("[data-lw-action=run-tool]").click()
        form.locator(f".lw-field.lw-wrong[data-name={name}] .lw-field-error", has_text=words).wait_for()
        assert page.locator("#lw-tool-problems").inner_text() == ""


def test_a_checkpoint_and_a_damaged_network_have_a_next_step(page: Page, app: Any, moons: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    key = "lora_unet_mid_block_attentions_0_proj_in"
    up = torch.randn(32, 2, 1, 1, generator=generator)
    up[0, 0] = float("nan")
    tensors = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": torch.randn(2, 32, 1, 1, generator=generator)}
    write_network(moons / "ill-moon.safetensors", tensors, {}, "fp16")
    form = open_tool(page, "check")
    form.locator("[name=files]").fill("half-moon\nill-moon")
    form.locator("[data-lw-action=run-tool]").click()
    page.locator("#lw-tool-next button", has_text="Repair ill-moon").click()
    assert page.locator("#lw-tool-next button").count() == 1
    assert page.locator("#lw-field-repair-file").input_value() == str(moons / "ill-moon.safetensors")
    form = open_tool(page, "merge-checkpoint")
    form.locator("[name=checkpoint]").fill("loaded")
    form.locator("[name=network]").fill("half-moon:0.5")
    form.locator("[name=network]").blur()
    form.locator("[name=out]").fill("baked.safetensors")
    form.locator("[data-lw-action=run-tool]").click()
    baked = app.home / "models" / "Stable-diffusion" / "baked.safetensors"
    page.locator("#lw-tool-next code", has_text=f'run.py ui --checkpoint "{baked}"').wait_for()


def begin_long_work(page: Page, moons: Path) -> None:
    """Begin what takes a minute if nobody cancels it."""
    names = [f"waning-moon-{number}" for number in range(100)]
    for name in names:
        shutil.copyfile(moons / "full-moon.safetensors", moons / f"{name}.safetensors")
    form = open_tool(page, "resize")
    form.locator("[name=files]").fill("\n".join(names))
    form.locator("[name=rank]").fill("2")
    form.locator("[name=out]").fill("waned-moons")
    form.locator("[data-lw-action=run-tool]").click()


def test_work_is_cancelled_by_clicking(page: Page, moons: Path) -> None:
    begin_long_work(page, moons)
    page.locator("#lw-tool-cancel").click()
    page.locator("#lw-tool-state", has_text="cancelled").wait_for()
    assert page.locator("#lw-tool-report").inner_text() == ""


def test_a_late_answer_to_cancel_does_not_bring_the_work_back(page: Page, moons: Path) -> None:
    held: list[tuple[Route, APIResponse]] = []
    page.route("**/tools/cancel", lambda route: held.append((route, route.fetch())))
    begin_long_work(page, moons)
    page.locator("#lw-tool-cancel").click()
    page.locator("#lw-tool-state", has_text="cancelled").wait_for()
    [(route, answer)] = held
    assert answer.json()["state"] == "running"
    with page.expect_response("**/tools/status"):
        route.fulfill(response=answer)
    page.wait_for_timeout(200)
    assert page.locator("#lw-tool-state").inner_text() == "cancelled"
