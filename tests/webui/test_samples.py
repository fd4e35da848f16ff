"""Samples drawn by the WebUI's own pipeline while it trains, and what its cards show of a run's files."""

from __future__ import annotations

import io
import json
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from runs import API, ended, start, wait_for

if TYPE_CHECKING:
    from conftest import WebUI

pytestmark = [pytest.mark.webui, pytest.mark.usefixtures("no_files_left")]

NAME = "lw-test-samples"
PROMPT = "a thing --s 4 --l 5 --d 7 --w 128 --h 128"
DRAWN: dict[str, Any] = {
    "sample_every_n_epochs": 1, "sample_prompts": PROMPT, "sample_sampler": "Euler", "learning_rate": 1e-2,
    "save_precision": "float",
}  # fmt: skip


def samples_of(webui: WebUI, run: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = webui.call(f"{API}/run/{run}/samples")["samples"]
    return found


def pixels(webui: WebUI, address: str) -> np.ndarray:
    with urllib.request.urlopen(f"{webui.url}/{address}") as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))


def model_hash(webui: WebUI, name: str) -> str:
    listed = {each["name"]: each["metadata"] for each in webui.call("/sdapi/v1/loras")}
    return str(listed[name]["sshs_model_hash"])


def test_a_sample_is_the_picture_of_the_saved_file(webui: WebUI, dataset: Path) -> None:
    run = start(webui, dataset, NAME, **DRAWN)
    assert ended(webui, run)["state"] == "finished"
    first, last = samples_of(webui, run)
    assert (first["epoch"], first["step"], last["epoch"], last["step"]) == (1, 3, 2, 6)
    for sample, file in ((first, f"{NAME}-000001"), (last, NAME)):
        drawn = pixels(webui, sample["url"]).astype(float)
        saved = webui.generate(f"a thing <lora:{file}:1>").pictures[0].astype(float)
        assert np.abs(drawn - saved).mean() < 0.1  # of 255: the adapters' product is rounded in another place
        assert np.abs(drawn - saved).max() <= 4
    bare = webui.generate("a thing")
    assert np.abs(pixels(webui, last["url"]).astype(float) - bare.pictures[0]).mean() > 2
    ours = f", Network in training: {NAME}, Network epoch: 2, Network step: 6"
    assert last["infotext"] == bare.infotexts[0] + ours


def test_tags_in_a_sample_prompt_are_left_out_and_told_of(webui: WebUI, dataset: Path) -> None:
    values = {**DRAWN, "sample_prompts": f"{PROMPT}\n{PROMPT.replace('thing', 'thing <lora:other:0.5>')}"}
    run = start(webui, dataset, NAME, **values)
    assert ended(webui, run)["state"] == "finished"
    samples = samples_of(webui, run)
    assert np.array_equal(pixels(webui, samples[0]["url"]), pixels(webui, samples[1]["url"]))
    told = [each["text"] for each in webui.call(f"{API}/status?run={run}")["messages"]]
    assert told.count("Samples: <lora:other:0.5> is left out while a network is in training") == 1


def test_samples_change_neither_the_training_nor_the_webui(webui: WebUI, dataset: Path) -> None:
    before = webui.generate("a house").pictures[0]
    options = webui.call("/sdapi/v1/options")
    ended(webui, start(webui, dataset, NAME, **{**DRAWN, "sample_every_n_epochs": "none"}))
    plain = model_hash(webui, NAME)
    run = start(webui, dataset, NAME, **DRAWN, sample_at_first=True, clip_skip=1)
    assert ended(webui, run)["state"] == "finished" and len(samples_of(webui, run)) == 3
    assert model_hash(webui, NAME) == plain
    assert np.array_equal(webui.generate("a house").pictures[0], before)
    assert webui.call("/sdapi/v1/options") == options


def test_what_a_person_chooses_meanwhile_waits_for_the_end(webui: WebUI, dataset: Path, other_checkpoint: str) -> None:
    """Samples look at the settings like all pictures: fp8 weights or another checkpoint must not come with them."""
    picture = webui.generate("a house").pictures[0]
    options = {"fp8_storage": "Disable", **webui.call("/sdapi/v1/options")}
    before = webui.call("/lw-probe/state")
    drawn = {"sample_every_n_steps": 1, "sample_prompts": "a thing --s 2 --w 64 --h 64"}
    run = start(webui, dataset, NAME, max_train_epochs=400, save_every_n_epochs=400, **drawn)
    waiting = []
    for name, value in (("fp8_storage", "Enable"), ("sd_model_checkpoint", other_checkpoint)):
        for wanted in (value, options[name]):
            waiting.append(threading.Thread(target=webui.set_options, kwargs={name: wanted}))
            waiting[-1].start()
            wait_for_option(webui, name, wanted)
            count = webui.call(f"{API}/status?run={run}")["samples"]
            wait_for(webui, run, lambda status, least=count + 3: status["samples"] >= least, seconds=60)
    assert all(thread.is_alive() for thread in waiting)
    webui.call(f"{API}/stop", {"id": run})
    assert ended(webui, run)["state"] == "stopped"
    for thread in waiting:
        thread.join(timeout=60)
    told = [each["text"] for each in webui.call(f"{API}/status?run={run}")["messages"]]
    assert not any("was not drawn" in text for text in told)
    after = webui.call("/lw-probe/state")
    assert all(after[part] == before[part] for part in ("weights", "storage", "buffers", "kinds", "overrides"))
    assert np.array_equal(webui.generate("a house").pictures[0], picture)


def wait_for_option(webui: WebUI, name: str, value: str) -> None:
    deadline = time.monotonic() + 30
    while webui.call("/sdapi/v1/options")[name] != value:
        assert time.monotonic() < deadline, f"{name} does not show {value}"
        time.sleep(0.05)


def test_settings_saved_during_a_sample_hold_nothing_of_ours(webui: WebUI, dataset: Path) -> None:
    config = webui.folder / "config.json"
    webui.set_options(lora_workshop_tags="LoRA Workshop", CLIP_stop_at_last_layers=1)  # writes the file
    options, saved = webui.call("/sdapi/v1/options"), json.loads(config.read_text(encoding="utf-8"))
    run = start(webui, dataset, NAME, sample_prompts="a thing --s 500", sample_at_first=True, clip_skip=2)
    wait_for(webui, run, lambda status: status["phase"] == "drawing samples")
    time.sleep(0.5)
    webui.set_options(lora_workshop_tags="LoRA Workshop")
    assert json.loads(config.read_text(encoding="utf-8")) == saved
    assert webui.call("/sdapi/v1/options") == options
    assert webui.call("/sdapi/v1/progress")["current_image"] is None
    assert webui.call(f"{API}/status?run={run}")["phase"] == "drawing samples"
    webui.call(f"{API}/cancel", {"id": run})
    ended(webui, run)


def test_sample_now(webui: WebUI, dataset: Path) -> None:
    run = start(webui, dataset, NAME, max_train_epochs=400, save_every_n_epochs=400)
    wait_for(webui, run, lambda status: status["record"]["steps"] >= 2)
    webui.call(f"{API}/sample", {"id": run})
    status = wait_for(webui, run, lambda status: status["samples"] == 1)
    assert any("the first caption is drawn, “a thing, number 0”" in each["text"] for each in status["messages"])
    webui.call(f"{API}/cancel", {"id": run})
    assert ended(webui, run)["state"] == "stopped"
    assert samples_of(webui, run)[0]["prompt"] == "a thing, number 0"


@pytest.mark.parametrize("route", ["/sdapi/v1/interrupt", f"{API}/stop"])
def test_an_end_in_the_middle_of_a_sample(webui: WebUI, dataset: Path, route: str) -> None:
    before = webui.generate("a house").pictures[0]
    run = start(webui, dataset, NAME, sample_prompts="a thing --s 500", sample_every_n_steps=2)
    wait_for(webui, run, lambda status: status["phase"] == "drawing samples")
    time.sleep(0.5)
    began = time.monotonic()
    webui.call(route, {"id": run} if route.startswith(API) else {})
    record = ended(webui, run)
    assert time.monotonic() - began < 20
    assert record["state"] == "stopped" and 2 <= record["steps"] <= 4
    assert (webui.networks / f"{NAME}.safetensors").is_file() and samples_of(webui, run) == []
    assert np.array_equal(webui.generate("a house").pictures[0], before)


def test_cards_show_a_file_at_once(webui: WebUI, dataset: Path) -> None:
    ended(webui, start(webui, dataset, NAME, **DRAWN, save_last_n_epochs=1, max_train_epochs=3))
    names = sorted(path.name for path in webui.networks.glob(f"{NAME}*"))
    kept = [f"{NAME}-000002", NAME]
    assert names == sorted(f"{name}{suffix}" for name in kept for suffix in (".json", ".png", ".safetensors"))
    assert {each["name"] for each in webui.call("/sdapi/v1/loras")} >= set(kept)
    for name in kept:
        card = webui.call(f"/sd_extra_networks/get-single-card?page=lora&tabname=txt2img&name={name}")["html"]
        assert f"{name}: epoch " in card and f"{name}.png" in card
        assert f"&lt;lora:{name}:" in card and "thing" in card  # the activation text goes into the prompt with the tag
    shown = Image.open(webui.networks / f"{NAME}.png")
    assert shown.size == (128, 128) and "Network step: 9" in shown.info["parameters"]


def test_unknown_samplers_and_options_are_refused(webui: WebUI, dataset: Path) -> None:
    with pytest.raises(RuntimeError, match="400 .*sample_sampler = 'nothing'.*Euler a"):
        start(webui, dataset, NAME, sample_at_first=True, sample_sampler="nothing")
    with pytest.raises(RuntimeError, match="400 .*sample_prompts, line 1: --w 65"):
        start(webui, dataset, NAME, sample_prompts="a thing --w 65")
