"""The slot panel in a real WebUI: the same pictures as with tags, nothing where it is closed, infotexts, axes, API."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from network_files import Networks, difference, weights_of
from pages import page_closed_in_order
from PIL import Image
from runs import API

from lora_ext.networks.file import scan_network

if TYPE_CHECKING:
    from conftest import WebUI
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.webui

PROMPT = "a red star"
TAGS, FOLDERS = "lora_workshop_tags", "lora_workshop_extra_folders"
SCREENSHOTS = Path(__file__).resolve().parents[2] / "test-results"
MOST, LEAST = 0.1, 0.5  # mean difference of pictures that are the same, and that are not, in units of 1/255
PATIENCE = int(os.environ.get("BROWSER_PATIENCE_MS", "120000"))


@pytest.fixture(scope="module")
def kept(webui: WebUI) -> Iterator[Networks]:
    """Two networks `w11-a` and `w11-b`, for all tests here."""
    folder = webui.networks / "of-the-slots"
    folder.mkdir(parents=True, exist_ok=True)
    files = Networks(folder, weights_of(Path(webui.call("/sdapi/v1/sd-models")[0]["filename"])))
    files.write("w11-a", 1)
    files.write("w11-b", 2)
    yield files
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def usual_settings(webui: WebUI, kept: Networks) -> Iterator[None]:
    usual = {TAGS: "LoRA Workshop", FOLDERS: "", "sd_lora": "None"}
    webui.set_options(**usual)
    yield
    webui.set_options(**usual)


def slots(*given: Any, **panel: Any) -> dict[str, Any]:
    """What the API takes: slots as (name, U-Net weight, text encoder weight)."""
    named = [dict(zip(("network", "unet", "te"), slot, strict=True)) for slot in given]
    return {"alwayson_scripts": {"LoRA Workshop": {"args": [{"enabled": True, "slots": named, **panel}]}}}


A, B = ("w11-a", 0.7, 0.7), ("w11-b", 0.4, 0.9)
SAME_TAGS = "<lora:w11-a:0.7><lora:w11-b:0.9:0.4>"
IMG2IMG = {"route": "/sdapi/v1/img2img", "denoising_strength": 0.8}
HIRES = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7}


@pytest.mark.parametrize("fields", [{}, {"batch_size": 2, "n_iter": 2}, HIRES], ids=["plain", "batch", "hires fix"])
def test_slots_give_the_pictures_of_tags(webui: WebUI, fields: dict[str, Any]) -> None:
    tagged = webui.generate(f"{PROMPT} {SAME_TAGS}", **fields)
    slotted = webui.generate(PROMPT, **slots(A, B), **fields)
    without = webui.generate(PROMPT, **fields)
    for left, right, plain in zip(tagged.pictures, slotted.pictures, without.pictures, strict=True):
        assert np.array_equal(left, right)
        assert difference(right, plain) > LEAST


def test_slots_and_tags_add_up(webui: WebUI) -> None:
    both = webui.generate(f"{PROMPT} <lora:w11-a:0.3>", **slots(("w11-a", 0.4, 0.4), B)).pictures[0]
    assert np.array_equal(both, webui.generate(f"{PROMPT} {SAME_TAGS}").pictures[0])


def test_text_encoder_weights_alone_change_the_picture(webui: WebUI) -> None:
    """Nothing in the prompt tells of them: what the WebUI remembers of its encoding has to be dropped."""
    first, second = (webui.generate(PROMPT, **slots(("w11-a", 0.0, te))).pictures[0] for te in (1.0, -1.0))
    assert difference(first, second) > LEAST
    assert np.array_equal(second, webui.generate(f"{PROMPT} <lora:w11-a:-1:0>").pictures[0])


def test_a_closed_panel_changes_nothing(webui: WebUI) -> None:
    plain = webui.generate(PROMPT)
    for given in (slots(A, B, enabled=False), slots(), slots(("", 1, 1), ("w11-a", 0, 0))):
        answer = webui.generate(PROMPT, **given)
        assert np.array_equal(answer.pictures[0], plain.pictures[0])
        assert "AddNet" not in answer.infotexts[0] and "Lora hashes" not in answer.infotexts[0]


def test_the_infotext_has_hashes_and_gives_the_picture_back(webui: WebUI, kept: Networks) -> None:
    made = webui.generate(PROMPT, **slots(A, B))
    digits = scan_network(kept.folder / "w11-a.safetensors").metadata["sshs_model_hash"][:12]
    assert f"AddNet Model 1: w11-a({digits}), AddNet Weight A 1: 0.7, AddNet Weight B 1: 0.7" in made.infotexts[0]
    assert "AddNet Weight A 2: 0.4, AddNet Weight B 2: 0.9" in made.infotexts[0]
    assert f"w11-a: {digits}" in made.infotexts[0].partition("Lora hashes: ")[2]
    again = webui.generate(PROMPT, infotext=made.infotexts[0])
    assert again.infotexts == made.infotexts
    assert np.array_equal(again.pictures[0], made.pictures[0])


def test_a_pasted_name_is_found_by_its_hash(webui: WebUI, kept: Networks) -> None:
    made = webui.generate(PROMPT, **slots(A))
    renamed = made.infotexts[0].replace("Model 1: w11-a(", "Model 1: another name(")
    again = webui.generate(PROMPT, infotext=renamed)
    assert np.array_equal(again.pictures[0], made.pictures[0]) and again.infotexts == made.infotexts


def test_problems_stand_with_the_picture(webui: WebUI) -> None:
    plain = webui.generate(PROMPT).pictures[0]
    for given, told in (
        (slots(("w11-none", 1, 1)), "Lora not found: w11-none"),
        (slots(A, colour="red"), "the panel has no colour; there are enabled, slots, mask"),
    ):
        assert np.array_equal(webui.generate(PROMPT, **given).pictures[0], plain)
        assert told in " ".join(webui.call("/lw-probe/tags/comments"))


def test_img2img(webui: WebUI) -> None:
    stream = io.BytesIO()
    Image.fromarray(webui.generate(PROMPT).pictures[0]).save(stream, "PNG")
    start = {**IMG2IMG, "init_images": [base64.b64encode(stream.getvalue()).decode()]}
    tagged = webui.generate(f"{PROMPT} {SAME_TAGS}", **start).pictures[0]
    assert np.array_equal(webui.generate(PROMPT, **slots(A, B), **start).pictures[0], tagged)


def mask(*columns: tuple[int, int, int]) -> str:
    """A mask of a few columns as base64."""
    picture, stream = Image.new("RGB", (len(columns), 1)), io.BytesIO()
    picture.putdata(columns)
    picture.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def in_regions(picture: str, *regions: str) -> dict[str, Any]:
    given = slots(A, B, mask=picture)
    for slot, region in zip(given["alwayson_scripts"]["LoRA Workshop"]["args"][0]["slots"], regions, strict=True):
        slot["region"] = region
    return given


def test_regions(webui: WebUI) -> None:
    plain = webui.generate(PROMPT, **slots(A, B)).pictures[0]
    assert difference(webui.generate(PROMPT, **in_regions(mask((255, 255, 0)), "R", "G")).pictures[0], plain) < MOST
    assert np.array_equal(webui.generate(PROMPT, **in_regions(mask((0, 0, 255)), "R", "G")).pictures[0], plain)
    apart = webui.generate(PROMPT, **in_regions(mask((255, 0, 0), (0, 255, 0)), "R", "G"))
    assert difference(apart.pictures[0], plain) > LEAST
    assert "AddNet Region 1: R" in apart.infotexts[0] and "AddNet Region 2: G" in apart.infotexts[0]
    webui.call("/lw-probe/tags/regions", {"w11-a": [[1.0, 0.0]], "w11-b": [[0.0, 1.0]]})
    tagged = webui.generate(f"{PROMPT} {SAME_TAGS}").pictures[0]
    webui.call("/lw-probe/tags/regions", {})
    assert np.array_equal(apart.pictures[0], tagged)
    assert np.array_equal(webui.generate(PROMPT, **slots(A, B)).pictures[0], plain)


def test_left_to_the_builtin_it_applies_and_says_so(webui: WebUI) -> None:
    ours = webui.generate(PROMPT, **slots(A, B)).pictures[0]
    webui.set_options(**{TAGS: "built-in"})
    theirs = webui.generate(PROMPT, **slots(A, B))
    assert "left to the built-in, as the settings say" in " ".join(webui.call("/lw-probe/tags/comments"))
    tagged = webui.generate(f"{PROMPT} {SAME_TAGS}").pictures[0]
    assert np.array_equal(theirs.pictures[0], tagged) and difference(theirs.pictures[0], ours) < MOST


def test_networks_of_further_folders(webui: WebUI, kept: Networks, tmp_path: Path) -> None:
    elsewhere = tmp_path / "more, networks"
    elsewhere.mkdir()
    shutil.copyfile(kept.folder / "w11-a.safetensors", elsewhere / "w11-far.safetensors")
    asked = slots(("w11-far", 0.7, 0.7), B)
    assert "w11-far" not in [each["name"] for each in webui.call(f"{API}/networks")["networks"]]
    webui.set_options(**{FOLDERS: f'"{elsewhere}", {tmp_path / "none"}'})
    listed = webui.call(f"{API}/networks")
    assert listed["notes"] == [f"{tmp_path / 'none'}: there is no such folder"]
    assert "w11-far" in [each["name"] for each in listed["networks"]]
    picture = webui.generate(PROMPT, **asked).pictures[0]
    assert np.array_equal(picture, webui.generate(f"{PROMPT} {SAME_TAGS}").pictures[0])
    assert np.array_equal(picture, webui.generate(f"{PROMPT} {SAME_TAGS.replace('w11-a', 'w11-far')}").pictures[0])
    webui.set_options(**{FOLDERS: ""})
    assert not np.array_equal(webui.generate(PROMPT, **asked).pictures[0], picture)


def plot(webui: WebUI, x: tuple[str, str], y: tuple[str, str], **fields: Any) -> list[np.ndarray]:
    """The cells of an X/Y plot, row by row."""
    labels = axis_labels(webui)
    values = [labels.index(x[0]), x[1], [], labels.index(y[0]), y[1], [], 0, "", []]
    arguments = [*values, False, True, False, False, False, False, False, 0, True]
    answer = webui.generate(PROMPT, script_name="x/y/z plot", script_args=arguments, **fields)
    return answer.pictures[1:]


def axis_labels(webui: WebUI) -> list[str]:
    found = webui.call("/sdapi/v1/script-info")
    script = next(each for each in found if each["name"] == "x/y/z plot" and not each["is_img2img"])
    choices: list[str] = script["args"][0]["choices"]
    return choices


def test_axes(webui: WebUI) -> None:
    cells = plot(webui, ("AddNet Model 1", "None,w11-a"), ("AddNet UNet Weight 2", "0,0.4"), **slots(A, B))
    expected = [(("", 1, 1), ("w11-b", 0, 0.9)), (A, ("w11-b", 0, 0.9)), (("", 1, 1), B), (A, B)]
    for cell, wanted in zip(cells, expected, strict=True):
        assert np.array_equal(cell, webui.generate(PROMPT, **slots(*wanted)).pictures[0])


def test_axes_open_the_panel_and_their_order_does_not_matter(webui: WebUI) -> None:
    weight, te = ("AddNet Weight 1", "0.5-1 (+0.5)"), ("AddNet TEnc Weight 1", "0,1")
    closed = slots(("w11-a", 0.3, 0.3), enabled=False)
    one, other = plot(webui, weight, te, **closed), plot(webui, te, weight, **closed)
    assert all(np.array_equal(left, other[place]) for left, place in zip(one, (0, 2, 1, 3), strict=True))
    assert np.array_equal(one[1], webui.generate(PROMPT, **slots(("w11-a", 1, 0))).pictures[0])


def test_without_a_page(webui: WebUI, another_webui: Any) -> None:
    """Under `--nowebui` the panel and its axes are there for the API."""
    expected = webui.generate(PROMPT, **slots(A, B)).pictures[0]
    with another_webui("--nowebui") as pageless:
        assert np.array_equal(pageless.generate(PROMPT, **slots(A, B)).pictures[0], expected)
        cells = plot(pageless, ("AddNet Weight 1", "0,0.7"), ("AddNet Model 2", "w11-b"), **slots(A, B))
        assert np.array_equal(cells[1], expected)


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Browser, webui: WebUI) -> Iterator[Page]:
    with page_closed_in_order(browser, viewport={"width": 1280, "height": 900}) as opened:
        opened.set_default_timeout(PATIENCE)
        opened.theme, opened.told = request.param, []
        opened.on("pageerror", lambda error: opened.told.append(str(error)))
        opened.goto(f"{webui.url}/?__theme={request.param}", wait_until="domcontentloaded", timeout=PATIENCE)
        opened.locator("#lw-slots-txt2img .label-wrap").click()
        yield opened


def shot(page: Any, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"slots-{name}-{page.theme}.png")


def shown(page: Any, tab: str) -> list[list[str]]:
    """[network, U-Net weight, text encoder weight] in each slot of a tab."""
    read = "(slot) => ['network', 'unet', 'te'].map((name) => slot.querySelector(`[data-slot-field=${name}]`).value)"
    found: list[list[str]] = page.evaluate(
        f"(tab) => [...document.querySelectorAll(`.lw-slots[data-tab=${{tab}}] .lw-slot`)].map({read})", tab
    )
    return found


@pytest.mark.browser
def test_the_panel_by_clicking(page: Any, webui: WebUI) -> None:
    """Filled in, generated, pasted back, sent to img2img; details open the network's card."""
    panel = page.locator("#lw-slots-txt2img .lw-slots")
    first, second = panel.locator(".lw-slot").nth(0), panel.locator(".lw-slot").nth(1)
    first.locator("[data-slot-field=network]").fill("w11-a")
    page.wait_for_function("document.querySelectorAll('#lw-networks option').length >= 2")
    assert panel.locator("[data-slot-field=enabled]").is_checked()
    panel.locator("[data-slot-field=separate]").check()
    second.locator("[data-slot-field=network]").fill("w11-b")
    first.locator("[data-slot-field=unet]").fill("0.7")
    first.locator("[data-slot-field=te]").fill("0.7")
    second.locator("[data-slot-field=unet]").fill("0.4")
    second.locator("[data-slot-field=te]").fill("0.9")
    assert page.locator("#lw-slots-txt2img .lw-slots-mark").inner_text() == "2 networks"
    panel.locator("summary").click()
    panel.locator("[data-lw-action=mask-parts]").first.click()
    assert [each.input_value() for each in panel.locator("[data-slot-field=region]").all()] == ["R", "G", "", "", ""]
    panel.locator("[data-brush=blue]").click()
    panel.locator(".lw-mask").click(position={"x": 40, "y": 40})
    panel.locator(".lw-mask").scroll_into_view_if_needed()
    pixel = "([x, y]) => [...document.querySelector('.lw-mask').getContext('2d').getImageData(x, y, 1, 1).data]"
    colours = [page.evaluate(pixel, place) for place in ([20, 350], [300, 350], [74, 74])]
    assert colours == [[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]]
    shot(page, "panel")
    assert page.told == []
    for name, value in (("prompt", PROMPT), ("width", "128"), ("height", "128"), ("steps", "4")):
        field = page.locator(f"#txt2img_{name}").locator("textarea, input[type=number]").first
        field.fill(value)
        field.blur()
    page.wait_for_timeout(1000)
    page.told.clear()  # gradio's own errors when a size is typed
    page.locator("#txt2img_generate").click()
    page.wait_for_function("document.querySelector('#html_info_txt2img')?.textContent.includes('AddNet Region 2: G')")

    page.evaluate("document.querySelector('#txt2img_send_to_img2img').click()")
    page.wait_for_function(
        "document.querySelector('.lw-slots[data-tab=img2img] [data-slot-field=network]').value !== ''"
    )
    filled = [["w11-a", "0.7", "0.7"], ["w11-b", "0.4", "0.9"], *[["", "1", "1"]] * 3]
    assert shown(page, "img2img") == filled
    assert page.locator("#lw-slots-img2img [data-slot-field=region]").nth(1).input_value() == "G"
    page.locator("#tabs > .tab-nav button", has_text="txt2img").click()
    first.locator("[data-slot-field=network]").fill("w11-nowhere")
    panel.locator(".lw-missing", has_text="There is no network w11-nowhere.").wait_for()
    page.locator("#txt2img_prompt textarea").fill("")
    page.locator("#txt2img_tools #paste").click()  # with an empty prompt: the last picture's
    page.wait_for_function(
        "document.querySelector('.lw-slots[data-tab=txt2img] [data-slot-field=network]').value === 'w11-a'"
    )
    assert shown(page, "txt2img") == filled
    assert panel.locator("[data-slot-field=region]").first.input_value() == "R"
    first.locator("button", has_text="Details").click()
    page.locator("#lw-network-card h4", has_text="w11-a").wait_for()
    page.wait_for_timeout(300)
    shot(page, "card")
    page.locator('[data-key="modelspec.title"]').fill(f"A network of the tests, {page.theme}")
    page.locator('[data-key="notes"]').fill("not saved yet")
    page.locator("[data-lw-action=save-metadata]").click()
    page.locator("#lw-network-card details", has_text=f"A network of the tests, {page.theme}").wait_for(
        state="attached"
    )
    assert page.locator('[data-key="notes"]').input_value() == "not saved yet"
    page.locator("#lw-networks-search").fill("slots w11-b")
    page.wait_for_function("document.querySelectorAll('#lw-networks-list li').length === 1")
    page.set_viewport_size({"width": 700, "height": 900})
    shot(page, "card-narrow")
    page.locator("#tabs > .tab-nav button", has_text="txt2img").click()
    page.locator("#lw-slots-txt2img").scroll_into_view_if_needed()
    shot(page, "panel-narrow")
    assert page.told == []


@pytest.mark.browser
def test_what_the_panel_costs_the_page(browser: Any, webui: WebUI) -> None:
    """Its components and events are a few of the page's hundreds, and its fields a few kilobytes."""
    config = webui.call("/config")
    own = [each for each in config["components"] if str(each["props"].get("elem_id", "")).startswith("lw-slots-")]
    assert len(own) == 6
    assert len(json.dumps(own)) < 20_000
    assert len(config["components"]) > 500
    seconds = []
    for _ in range(3):
        with page_closed_in_order(browser) as page:
            started = time.perf_counter()
            page.goto(webui.url, wait_until="domcontentloaded", timeout=PATIENCE)
            page.locator("#lw-slots-img2img").wait_for(state="attached", timeout=PATIENCE)
            seconds.append(time.perf_counter() - started)
    print(f"\nthe page stands after {statistics.median(seconds):.2f} s (median of 3)")
