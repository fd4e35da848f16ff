"""A paused training gives the WebUI back: pictures as before, its network in prompts, and then it goes on exactly."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from runs import API, OTHER, ended, start, wait_for
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from conftest import WebUI

pytestmark = [pytest.mark.webui, pytest.mark.usefixtures("no_files_left")]

NAME = "lw-test-pause"
LIVE = f"a thing <lora:{NAME}-live:1>"
MANY = {"max_train_epochs": 400, "save_every_n_epochs": 400, "learning_rate": 3e-2, "save_precision": "float"}
FEW = {**MANY, "max_train_epochs": 8}


def picture(webui: WebUI, prompt: str = "a thing") -> np.ndarray:
    return webui.generate(prompt).pictures[0]


def state(webui: WebUI) -> dict[str, Any]:
    found: dict[str, Any] = webui.call("/lw-probe/state")
    return found


def is_paused(status: dict[str, Any]) -> bool:
    return bool(status["record"]["state"] == "paused")


def paused_run(webui: WebUI, dataset: Path, **settings: Any) -> str:
    """A run that is paused after some steps."""
    run = start(webui, dataset, NAME, **{**MANY, **settings})
    wait_for(webui, run, lambda status: status["record"]["steps"] >= 2)
    webui.call(f"{API}/pause", {"id": run})
    wait_for(webui, run, is_paused)
    return run


def straight_network(webui: WebUI, dataset: Path) -> dict[str, np.ndarray]:
    """What a short run comes to without a pause."""
    assert ended(webui, start(webui, dataset, NAME, **FEW))["state"] == "finished"
    return load_file(webui.networks / f"{NAME}.safetensors")


def finished_network(webui: WebUI, run: str) -> dict[str, np.ndarray]:
    record = ended(webui, run)
    assert record["state"] == "finished", record["error"]
    return load_file(webui.networks / f"{NAME}.safetensors")


def same_tensors(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_the_webui_is_as_it_was_during_a_pause_and_after_it(webui: WebUI, dataset: Path) -> None:
    bare, before = picture(webui), state(webui)
    run = paused_run(webui, dataset)
    during = state(webui)
    assert {key for key in before if before[key] != during[key]} == set()
    assert webui.call("/sdapi/v1/progress?skip_current_image=true")["state"]["job_count"] == 0
    assert np.array_equal(picture(webui), bare)
    webui.call("/sdapi/v1/interrupt", {})
    assert np.array_equal(picture(webui), bare)
    time.sleep(1)
    assert is_paused(webui.call(f"{API}/status?run={run}"))
    steps = webui.call(f"{API}/status?run={run}")["record"]["steps"]
    webui.call(f"{API}/resume", {"id": run})
    wait_for(webui, run, lambda status: status["record"]["steps"] > steps)
    progress = webui.call("/sdapi/v1/progress?skip_current_image=true")["state"]
    assert progress["job"] == "LoRA Workshop training"
    webui.call(f"{API}/stop", {"id": run})
    assert ended(webui, run)["state"] == "stopped"
    after = state(webui)
    assert {key for key in before if before[key] != after[key]} == {"random"}  # of the pictures, not of the run
    assert np.array_equal(picture(webui), bare)


def test_the_network_in_training_in_prompts(webui: WebUI, dataset: Path) -> None:
    bare = picture(webui)
    run = paused_run(webui, dataset)
    status = webui.call(f"{API}/status?run={run}")
    assert (status["live_network"], status["missing_checkpoint"]) == (f"{NAME}-live", "")
    live = picture(webui, LIVE)
    assert not np.array_equal(live, bare)
    assert not list(webui.networks.glob(f"{NAME}*"))
    webui.call(f"{API}/save", {"id": run})
    saved = wait_for(webui, run, lambda status: len(status["saved"]) == 1)["saved"][0]["path"]
    assert np.array_equal(picture(webui, f"a thing <lora:{Path(saved).stem}:1>"), live)
    assert np.array_equal(picture(webui), bare)
    assert np.array_equal(picture(webui, LIVE), live)  # stays in the weights when the run goes on
    webui.call(f"{API}/resume", {"id": run})
    wait_for(webui, run, lambda status: status["record"]["steps"] > 20)
    webui.call(f"{API}/pause", {"id": run})
    wait_for(webui, run, is_paused)
    later = picture(webui, LIVE)  # under the same name
    assert not np.array_equal(later, live)
    webui.call(f"{API}/stop", {"id": run})
    ended(webui, run)
    assert np.array_equal(picture(webui, f"a thing <lora:{NAME}:1>"), later)
    assert np.array_equal(picture(webui, LIVE), bare)


def comments(webui: WebUI) -> list[str]:
    found: list[str] = webui.call("/lw-probe/tags/comments")
    return found


def test_where_tags_are_left_to_the_built_in_it_is_told(webui: WebUI, dataset: Path) -> None:
    bare = picture(webui, "a thing")
    run = paused_run(webui, dataset)
    problem = "tags are left to the built-in, which does not know networks in training (Settings > LoRA Workshop)"
    try:
        webui.set_options(lora_workshop_tags="built-in")
        assert webui.call(f"{API}/status?run={run}")["live_network_problem"] == problem
        assert np.array_equal(picture(webui, LIVE), bare)
        assert comments(webui) == [f"LoRA Workshop: <lora:{NAME}-live:1> does nothing: {problem}"]
        assert comments(webui)[0] in webui.log()
    finally:
        webui.set_options(lora_workshop_tags="LoRA Workshop")
    assert webui.call(f"{API}/status?run={run}")["live_network_problem"] == ""
    assert not np.array_equal(picture(webui, LIVE), bare) and comments(webui) == []
    webui.call(f"{API}/cancel", {"id": run})
    ended(webui, run)


def test_a_broken_network_beside_the_live_one_is_told_and_the_live_one_applied(
    webui: WebUI, dataset: Path, networks: Path
) -> None:
    save_file({"lora_unet_nothing.hada_w1_a": np.zeros((1, 1), np.float32)}, networks / "lw-pause-loha.safetensors")
    run = paused_run(webui, dataset)
    live = picture(webui, LIVE)
    assert np.array_equal(picture(webui, f"{LIVE} <lora:lw-pause-loha:1>"), live)
    (comment,) = comments(webui)
    assert comment.startswith("lw-pause-loha is left out: lora_unet_nothing: hada_w1_b missing")
    assert webui.call(f"{API}/status?run={run}")["live_network_problem"] == ""
    webui.call(f"{API}/cancel", {"id": run})
    ended(webui, run)


def test_unloading_just_when_the_run_has_its_checkpoint_again(webui: WebUI, dataset: Path) -> None:
    run = paused_run(webui, dataset)
    webui.call("/lw-probe/hold", {"seconds": 3})
    webui.call(f"{API}/resume", {"id": run})
    time.sleep(1)
    webui.call("/sdapi/v1/unload-checkpoint", {})
    record = webui.call(f"{API}/status?run={run}")["record"]
    webui.call("/sdapi/v1/reload-checkpoint", {})
    assert record["state"] == "stopped" and record["steps"] < 20
    assert (webui.networks / f"{NAME}.safetensors").is_file()


def test_a_pause_changes_nothing_of_what_is_trained(webui: WebUI, dataset: Path) -> None:
    expected = straight_network(webui, dataset)
    run = paused_run(webui, dataset, **FEW)
    picture(webui, LIVE)
    webui.call("/sdapi/v1/unload-checkpoint", {})
    assert is_paused(webui.call(f"{API}/status?run={run}"))
    webui.call("/sdapi/v1/reload-checkpoint", {})
    webui.call(f"{API}/resume", {"id": run})
    assert same_tensors(finished_network(webui, run), expected)


def test_another_checkpoint_meanwhile(webui: WebUI, dataset: Path, other_checkpoint: str) -> None:
    expected, bare = straight_network(webui, dataset), picture(webui)
    own = webui.call("/sdapi/v1/options")["sd_model_checkpoint"]
    run = paused_run(webui, dataset, **FEW)
    live = picture(webui, LIVE)
    webui.set_options(sd_model_checkpoint=other_checkpoint)
    elsewhere = picture(webui)
    assert not np.array_equal(elsewhere, bare) and not np.array_equal(picture(webui, LIVE), live)
    webui.call(f"{API}/resume", {"id": run})
    status = wait_for(webui, run, lambda status: status["missing_checkpoint"])
    name = webui.call(f"{API}/status?run={run}")["record"]["checkpoint"]
    assert is_paused(status) and status["missing_checkpoint"] == name
    assert f"this run trains on {name}, and now {OTHER} is loaded: load {name}" in status["record"]["note"]
    assert np.array_equal(picture(webui), elsewhere)
    webui.call(f"{API}/resume", {"id": run, "load_checkpoint": True})
    assert same_tensors(finished_network(webui, run), expected)
    assert webui.call("/sdapi/v1/options")["sd_model_checkpoint"] == own
    assert np.array_equal(picture(webui), bare)


def test_there_and_back_by_hand(webui: WebUI, dataset: Path, other_checkpoint: str) -> None:
    """The model that the run began on is gone by then: it goes on with the new one."""
    expected, bare = straight_network(webui, dataset), picture(webui)
    own = webui.call("/sdapi/v1/options")["sd_model_checkpoint"]
    run = paused_run(webui, dataset, **FEW)
    webui.set_options(sd_model_checkpoint=other_checkpoint)
    picture(webui)
    webui.set_options(sd_model_checkpoint=own)
    webui.call(f"{API}/resume", {"id": run})
    assert same_tensors(finished_network(webui, run), expected)
    assert np.array_equal(picture(webui), bare)


def test_a_checkpoint_that_is_gone_leaves_the_run_paused(webui: WebUI, dataset: Path, other_checkpoint: str) -> None:
    own = webui.call("/sdapi/v1/options")["sd_model_checkpoint"]
    webui.set_options(sd_model_checkpoint=other_checkpoint)
    run = paused_run(webui, dataset)
    webui.set_options(sd_model_checkpoint=own)
    file = Path(webui.folder, "models", "Stable-diffusion", f"{OTHER}.safetensors")
    file.rename(file.with_suffix(".away"))
    webui.call("/sdapi/v1/refresh-checkpoints", {})
    try:
        webui.call(f"{API}/resume", {"id": run, "load_checkpoint": True})
        status = wait_for(webui, run, lambda status: "not among the WebUI's" in status["record"]["note"])
        assert is_paused(status)
        webui.call(f"{API}/cancel", {"id": run})
        assert ended(webui, run)["state"] == "stopped"
    finally:
        file.with_suffix(".away").rename(file)


def test_reload_ui_ends_a_paused_run_in_order(webui: WebUI, dataset: Path) -> None:
    bare = picture(webui)
    run = paused_run(webui, dataset)
    webui.reload_ui()
    assert webui.call(f"{API}/status?run={run}")["record"]["state"] == "stopped"
    assert (webui.networks / f"{NAME}.safetensors").is_file()
    assert np.array_equal(picture(webui), bare)
