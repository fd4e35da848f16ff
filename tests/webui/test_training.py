"""Trainings in the WebUI: their files at once usable, pictures that wait, interrupts, unloading, and "Reload UI"."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from runs import API, ended, start, wait_for

if TYPE_CHECKING:
    from conftest import WebUI

pytestmark = [pytest.mark.webui, pytest.mark.usefixtures("no_files_left")]

NAME = "lw-test-training"
MANY = {"max_train_epochs": 400, "save_every_n_epochs": 400}


def long_run(webui: WebUI, dataset: Path) -> str:
    """A run of many steps, two of which are done."""
    run = start(webui, dataset, NAME, **MANY)
    wait_for(webui, run, lambda status: status["record"]["steps"] >= 2)
    return run


def test_the_files_of_a_run_are_usable_at_once(webui: WebUI, dataset: Path) -> None:
    bare = webui.generate("a thing").pictures[0]
    record = ended(webui, start(webui, dataset, NAME, learning_rate=3e-2))
    assert [Path(file).name for file in record["files"]] == [f"{NAME}-000001.safetensors", f"{NAME}.safetensors"]
    assert {Path(file).parent for file in record["files"]} == {webui.networks}
    assert record["checkpoint"] == webui.call(f"{API}/status")["checkpoint"]["name"]
    with_first = webui.generate(f"a thing <lora:{NAME}-000001:1>").pictures[0]
    with_last = webui.generate(f"a thing <lora:{NAME}:1>").pictures[0]
    pictures = [bare, with_first, with_last]
    assert len({picture.tobytes() for picture in pictures}) == 3
    listed = {each["name"]: each["metadata"] for each in webui.call("/sdapi/v1/loras")}
    assert listed[NAME]["ss_output_name"] == NAME and f"{NAME}-000001" in listed


def test_a_file_trained_anew_under_its_name_takes_effect(webui: WebUI, dataset: Path) -> None:
    prompt = f"a thing <lora:{NAME}:1>"
    ended(webui, start(webui, dataset, NAME, learning_rate=3e-2))
    first = webui.generate(prompt).pictures[0]
    ended(webui, start(webui, dataset, NAME, learning_rate=3e-2, seed=4))
    assert not np.array_equal(webui.generate(prompt).pictures[0], first)


def test_a_picture_waits_for_the_run_and_comes_out_right(webui: WebUI, dataset: Path) -> None:
    expected = webui.generate("a house").pictures[0]
    run = long_run(webui, dataset)
    made: list[Any] = []
    waiting = threading.Thread(target=lambda: made.append(webui.generate("a house")))
    waiting.start()
    time.sleep(1)
    assert not made
    progress = webui.call("/sdapi/v1/progress?skip_current_image=true")["state"]
    assert progress["job"] == "LoRA Workshop training" and progress["sampling_steps"] == 1200
    webui.call(f"{API}/stop", {"id": run})
    waiting.join(timeout=300)
    assert np.array_equal(made[0].pictures[0], expected)


def test_the_interrupt_of_the_webui_stops_and_keeps(webui: WebUI, dataset: Path) -> None:
    run = long_run(webui, dataset)
    webui.call("/sdapi/v1/interrupt", {})
    record = ended(webui, run)
    assert record["state"] == "stopped" and record["steps"] < 1200
    assert (webui.networks / f"{NAME}.safetensors").is_file()


@pytest.mark.parametrize(
    ("route", "body"),
    [("/sdapi/v1/unload-checkpoint", {}), ("/lw-probe/press", {"elem_id": "sett_unload_sd_model"})],
    ids=["API", "button"],
)
def test_unloading_the_checkpoint_ends_the_run_first(
    webui: WebUI, dataset: Path, route: str, body: dict[str, str]
) -> None:
    run = long_run(webui, dataset)
    webui.call(route, body)
    assert webui.call(f"{API}/status?run={run}")["record"]["state"] == "stopped"
    assert (webui.networks / f"{NAME}.safetensors").is_file()
    webui.call("/sdapi/v1/reload-checkpoint", {})


def test_a_vae_chosen_on_a_card_waits_for_the_run(webui: WebUI, dataset: Path) -> None:
    run = long_run(webui, dataset)
    waiting = threading.Thread(target=lambda: webui.call("/lw-probe/reload-vae", {}))
    waiting.start()
    time.sleep(1)
    assert waiting.is_alive()
    webui.call(f"{API}/cancel", {"id": run})
    waiting.join(timeout=60)
    assert not waiting.is_alive()


def test_a_second_run_waits_and_may_be_taken_out(webui: WebUI, dataset: Path) -> None:
    first, second = long_run(webui, dataset), start(webui, dataset, f"{NAME}-second", **MANY)
    webui.call(f"{API}/cancel", {"id": second})
    assert ended(webui, second)["state"] == "stopped"
    webui.call(f"{API}/cancel", {"id": first})
    assert ended(webui, first)["state"] == "stopped"
    assert not list(webui.networks.glob(f"{NAME}*"))


def test_the_host_renders_what_txt2img_renders(webui: WebUI) -> None:
    settings = {"prompt": "a house", "seed": 7, "steps": 4, "width": 128, "height": 128, "cfg_scale": 5.0,
                "sampler": "Euler", "batch_size": 2}  # fmt: skip
    expected = webui.generate("a house", batch_size=2)
    given = webui.call("/lw-probe/picture", {"settings": settings})
    assert [each["seed"] for each in given] == [7, 8]
    assert given[0]["infotext"] == expected.infotexts[0]


def test_bad_settings_are_refused_in_words(webui: WebUI, dataset: Path) -> None:
    with pytest.raises(RuntimeError, match="400 .*network_dim"):
        start(webui, dataset, NAME, network_dim=0)
    with pytest.raises(RuntimeError, match="400 .*no such folder|400 .*not.*folder"):
        start(webui, dataset / "absent", NAME)


@pytest.mark.parametrize("time_round", ["first", "second"])
def test_reload_ui_ends_a_run_in_order(webui: WebUI, dataset: Path, time_round: str) -> None:
    """And everything works afterwards, as often as it is done."""
    bare = webui.generate("a thing").pictures[0]
    run = long_run(webui, dataset)
    webui.reload_ui()
    record = webui.call(f"{API}/status?run={run}")["record"]
    assert record["state"] == "stopped" and (webui.networks / f"{NAME}.safetensors").is_file()
    assert np.array_equal(webui.generate("a thing").pictures[0], bare)
    assert ended(webui, start(webui, dataset, NAME, learning_rate=3e-2))["state"] == "finished"
    assert not np.array_equal(webui.generate(f"a thing <lora:{NAME}:1>").pictures[0], bare)
