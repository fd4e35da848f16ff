"""The tab Files in a real WebUI: previewed, written, in its lists, used by a tag, compared in the X/Y/Z plot."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from network_files import weights_of
from pages import page_closed_in_order
from runs import API

from lora_ext.networks.file import write_network

if TYPE_CHECKING:
    from conftest import WebUI
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.webui

PROMPT = "a red star"
PATIENCE = int(os.environ.get("BROWSER_PATIENCE_MS", "120000"))
SCREENSHOTS = Path(__file__).resolve().parents[2] / "test-results"
PLOT = "#script_txt2img_xyz_plot_"
SHOWN_IN_PLOT = {
    "x_type": "[LoRA] Network", "x_values": "None, u6-one, u6-two, u6-both",
    "y_type": "[LoRA] Weight", "y_values": "0.4, 0.6, 0.8, 1",
}  # fmt: skip


@pytest.fixture
def pair(webui: WebUI, networks: Path) -> Path:
    """The folder of the tests with `u6-one` and `u6-two`, low-rank networks that show."""
    weights = weights_of(Path(webui.call("/sdapi/v1/sd-models")[0]["filename"]))
    for seed, name in enumerate(("u6-one", "u6-two")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for key, weight in weights.items():
            if key.endswith(("_attn1_to_q", "_attn2_to_v", "_fc1")):
                up = torch.randn(weight.shape[0], 4, *[1] * (weight.ndim - 2), generator=generator)
                tensors[f"{key}.lora_up.weight"] = up * weight.std() * 0.3
                tensors[f"{key}.lora_down.weight"] = torch.randn(4, *weight.shape[1:], generator=generator)
        write_network(networks / f"{name}.safetensors", tensors, {"ss_base_model_version": "sd_v1"}, "float")
    return networks


@pytest.fixture
def page(browser: Browser, webui: WebUI) -> Iterator[Page]:
    with page_closed_in_order(browser, viewport={"width": 1280, "height": 900}) as opened:
        opened.set_default_timeout(PATIENCE)
        opened.goto(f"{webui.url}/?__theme=dark", wait_until="domcontentloaded", timeout=PATIENCE)
        opened.locator("#tabs > .tab-nav button", has_text="LoRA Workshop").click()
        opened.locator("#lw-tabs > .tab-nav button", has_text="Files").click()
        yield opened


def work(webui: WebUI, tool: str, what: str = "run", **settings: Any) -> dict[str, Any]:
    """Have a tool do its work; returns its status and its report when it has ended."""
    webui.call(f"{API}/tools/{tool}/{what}", {"settings": settings})
    deadline = time.monotonic() + 300
    while webui.call(f"{API}/tools/status")["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    told: dict[str, Any] = webui.call(f"{API}/tools/report")
    return told


def far(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference of two pictures, in steps of 1/255."""
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def test_a_merged_network_is_there_at_once_and_acts_as_both(webui: WebUI, pair: Path) -> None:
    out = "of-the-tests/u6-both.safetensors"
    told = work(webui, "merge-networks", "preview", network="u6-one:0.6\nu6-two:-0.4", out=out)
    assert told["status"]["state"] == "finished" and not (pair / "u6-both.safetensors").exists()
    told = work(webui, "merge-networks", network="u6-one:0.6\nu6-two:-0.4", out=out)
    assert told["report"]["files"][0]["path"] == str(pair / "u6-both.safetensors")
    assert "u6-both" in [each["name"] for each in webui.call("/sdapi/v1/loras")]
    plain = webui.generate(PROMPT).pictures[0]
    both = webui.generate(f"{PROMPT} <lora:u6-one:0.6> <lora:u6-two:-0.4>").pictures[0]
    merged = webui.generate(f"{PROMPT} <lora:u6-both:1>").pictures[0]
    assert far(both, plain) > 1 and far(both, merged) < 0.1


def test_a_merged_checkpoint_is_in_the_list(webui: WebUI, pair: Path) -> None:
    told = work(webui, "merge-checkpoint", checkpoint="loaded", network="u6-one:0.6", out="u6-baked.safetensors")
    assert told["status"]["state"] == "finished", told
    path = Path(told["report"]["files"][0]["path"])
    before = webui.call("/sdapi/v1/options")["sd_model_checkpoint"]
    try:
        titles = {each["model_name"]: each["title"] for each in webui.call("/sdapi/v1/sd-models")}
        tagged = webui.generate(f"{PROMPT} <lora:u6-one:0.6>").pictures[0]
        webui.set_options(sd_model_checkpoint=titles["u6-baked"])
        assert far(webui.generate(PROMPT).pictures[0], tagged) < 0.5
    finally:
        webui.set_options(sd_model_checkpoint=before)
        for written in path.parent.glob("u6-baked*"):
            written.unlink()
        webui.call("/sdapi/v1/refresh-checkpoints", {})


def test_nothing_outside_the_folders_is_read_or_written(webui: WebUI, pair: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="from here files are written into"):
        work(webui, "merge-networks", network="u6-one", out=str(tmp_path / "x.safetensors"))
    (pair / "u6-one.safetensors").rename(tmp_path / "u6-out.safetensors")
    told = work(webui, "merge-networks", network=str(tmp_path / "u6-out.safetensors"), out="u6-x.safetensors")
    assert told["status"]["state"] == "failed" and "from here only those can be read" in told["status"]["problems"][0]


@pytest.mark.browser
def test_by_clicking(page: Page, webui: WebUI, pair: Path) -> None:
    page.locator(".lw-kind[data-tool=merge-networks]").click()
    form = page.locator(".lw-tool[data-tool=merge-networks]")
    form.locator("[name=network]").fill("u6-one:0.6\nu6-two:-0.4")
    form.locator("[name=out]").fill("of-the-tests/u6-both.safetensors")
    form.locator("[name=method]").select_option("svd")
    form.locator("[name=rank]").fill("many")
    form.locator("[data-lw-action=preview-tool]").click()
    form.locator(".lw-wrong .lw-field-error", has_text="allowed is a whole number").wait_for()
    form.locator("[name=rank]").fill("4")
    form.locator("[data-lw-action=preview-tool]").click()
    page.locator(".lw-tool-report[data-preview=true] .lw-spectra figure", has_text="MID").wait_for()
    assert form.locator(".lw-wrong").count() == 0
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "webui-files-dark.png", full_page=True)
    form.locator("[data-lw-action=run-tool]").click()
    page.locator(".lw-tool-report[data-preview=false] .lw-tool-files", has_text="wrote").wait_for()
    page.screenshot(path=SCREENSHOTS / "webui-files-written.png", full_page=True)
    page.locator("[data-lw-action=compare-networks]").click()
    page.wait_for_function("!document.querySelector('[data-lw-action=compare-networks]').disabled")  # all has settled
    shown = {name: page.locator(f"{PLOT}{name} :is(textarea, input)").first.input_value() for name in SHOWN_IN_PLOT}
    assert shown == SHOWN_IN_PLOT
    page.screenshot(path=SCREENSHOTS / "webui-files-plot.png", full_page=True)


@pytest.mark.browser
def test_a_merged_checkpoint_is_loaded_and_compared_by_clicking(page: Page, webui: WebUI, pair: Path) -> None:
    before = webui.call("/sdapi/v1/options")["sd_model_checkpoint"]
    source = before.split(" [")[0].removesuffix(".safetensors")
    page.locator(".lw-kind[data-tool=merge-checkpoint]").click()
    form = page.locator(".lw-tool[data-tool=merge-checkpoint]")
    form.locator("[name=checkpoint]").fill("loaded")
    form.locator("[name=network]").fill("u6-one:0.6")
    form.locator("[name=network]").blur()  # a name is suggested now
    form.locator("[name=out]").fill("u6-clicked.safetensors")
    try:
        form.locator("[data-lw-action=run-tool]").click()
        page.locator("[data-lw-action=compare-checkpoints]").click()
        page.wait_for_function("!document.querySelector('[data-lw-action=compare-checkpoints]').disabled")
        shown = {
            name: page.locator(f"{PLOT}{name} :is(textarea, input)").first.input_value()
            for name in ("x_type", "x_values", "y_type")
        }
        assert shown == {"x_type": "Checkpoint name", "x_values": f"{source}, u6-clicked", "y_type": "Nothing"}
        page.locator("#tabs > .tab-nav button", has_text="LoRA Workshop").click()
        page.screenshot(path=SCREENSHOTS / "webui-files-checkpoint.png", full_page=True)
        page.locator("#lw-tool-next [data-lw-action=load-checkpoint]").click()
        deadline = time.monotonic() + 120
        while not webui.call("/sdapi/v1/options")["sd_model_checkpoint"].startswith("u6-clicked.safetensors"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        webui.set_options(sd_model_checkpoint=before)
        for written in Path(webui.call("/sdapi/v1/sd-models")[0]["filename"]).parent.glob("u6-clicked*"):
            written.unlink()
        webui.call("/sdapi/v1/refresh-checkpoints", {})


def test_a_work_is_cancelled_and_leaves_nothing(webui: WebUI, pair: Path) -> None:
    webui.call(f"{API}/tools/interrogate/run", {"settings": {"file": "u6-one", "checkpoint": "loaded"}})
    webui.call(f"{API}/tools/cancel", {})
    deadline = time.monotonic() + 120
    while webui.call(f"{API}/tools/status")["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    status = webui.call(f"{API}/tools/status")
    assert (status["state"], status["problems"]) == ("cancelled", [])
    assert sorted(path.name for path in pair.iterdir()) == ["u6-one.safetensors", "u6-two.safetensors"]
    webui.generate(PROMPT)  # the checkpoint was given back


def test_every_tool_answers(webui: WebUI, pair: Path) -> None:
    """Each tool with a network and the loaded checkpoint, in the WebUI's own Python and torch."""
    work(webui, "merge-checkpoint", checkpoint="loaded", network="u6-one", out="of-the-tests/u6-tuned.safetensors")
    tuned = next(iter(webui.call(f"{API}/tools/report")["report"]["files"]))["path"]
    try:
        done = {
            "resize": work(webui, "resize", files="u6-one\nu6-two", dynamic="sv_fro=0.9", out="of-the-tests/small"),
            "recipe": work(
                webui, "resize", files="u6-one", recipe="fro_ckpt=1,thr=-3", checkpoint="loaded",
                out="of-the-tests/u6-recipe.safetensors",
            ),
            "extract": work(
                webui, "extract", base="loaded", tuned=tuned, rank=4, out="of-the-tests/u6-extracted.safetensors"
            ),
            "check": work(webui, "check", files="u6-one", checkpoint="loaded"),
            "repair": work(webui, "repair", file="u6-one", out="of-the-tests/u6-repaired.safetensors"),
            "interrogate": work(webui, "interrogate", file="u6-one", checkpoint="loaded", top=5),
            "inspect": work(webui, "inspect", file="u6-one"),
            "metadata": work(webui, "metadata", file="u6-one", set="ss_training_comment=a test"),
            "convert": work(webui, "convert", file="u6-one", to="diffusers", out="of-the-tests/u6-d.safetensors"),
        }  # fmt: skip
    finally:
        Path(tuned).unlink()
        Path(tuned).with_suffix(".yaml").unlink(missing_ok=True)
        Path(tuned).parent.rmdir()
    assert {name: told["status"]["problems"] for name, told in done.items()} == {name: [] for name in done}
    assert done["check"]["report"]["verdict"] == "healthy"
    extracted = webui.generate(f"{PROMPT} <lora:u6-extracted:1>").pictures[0]
    assert far(extracted, webui.generate(f"{PROMPT} <lora:u6-one:1>").pictures[0]) < 0.5
