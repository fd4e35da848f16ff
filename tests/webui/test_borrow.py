"""The WebUI is exactly as it was after a training, however it ends: pixels, weights, flags, modes, random states."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from runs import API, ended, start, wait_for

if TYPE_CHECKING:
    from conftest import WebUI

pytestmark = [pytest.mark.webui, pytest.mark.usefixtures("no_files_left")]

NAME = "lw-test-borrow"
DRAWN = {"sample_every_n_epochs": 1, "sample_prompts": "a thing --s 4 --l 5 --w 64 --h 64", "sample_sampler": "Euler"}
MANY = {"max_train_epochs": 400, "save_every_n_epochs": 400}


def state(webui: WebUI) -> dict[str, Any]:
    found: dict[str, Any] = webui.call("/lw-probe/state")
    return found


def finish(webui: WebUI, dataset: Path, **settings: Any) -> dict[str, Any]:
    return ended(webui, start(webui, dataset, NAME, **settings))


def stop(webui: WebUI, dataset: Path) -> dict[str, Any]:
    return end_early(webui, dataset, "/stop")


def cancel(webui: WebUI, dataset: Path) -> dict[str, Any]:
    return end_early(webui, dataset, "/cancel")


def end_early(webui: WebUI, dataset: Path, route: str) -> dict[str, Any]:
    run = start(webui, dataset, NAME, **MANY)
    wait_for(webui, run, lambda status: status["record"]["steps"] >= 2)
    webui.call(API + route, {"id": run})
    return ended(webui, run)


def fail(phase: str, **settings: Any) -> Callable[[WebUI, Path], dict[str, Any]]:
    def run(webui: WebUI, dataset: Path) -> dict[str, Any]:
        webui.call("/lw-probe/arm", {"phase": phase})
        return ended(webui, start(webui, dataset, NAME, **settings))

    return run


ENDS: dict[str, tuple[Callable[[WebUI, Path], dict[str, Any]], str]] = {
    "finished": (finish, "finished"),
    "stopped": (stop, "stopped"),
    "cancelled": (cancel, "stopped"),
    **{phase: (fail(phase), "failed") for phase in ("caching", "first step", "mid-run", "saving", "out of memory")},
    "preview": (fail("preview", **DRAWN), "finished"),
    "gradient checkpointing": (partial(finish, gradient_checkpointing=True), "finished"),
    "bf16": (partial(finish, mixed_precision="bf16"), "finished"),
    "finished again": (finish, "finished"),
}


@pytest.mark.parametrize("end", ENDS)
def test_everything_is_as_it_was(webui: WebUI, dataset: Path, end: str) -> None:
    run, expected = ENDS[end]
    picture = webui.generate("a house").pictures[0]
    before = state(webui)
    record = run(webui, dataset)
    assert record["state"] == expected, record["error"]
    after = state(webui)
    assert {key for key in before if before[key] != after[key]} == set()
    assert np.array_equal(webui.generate("a house").pictures[0], picture)


def test_what_went_wrong_is_told(webui: WebUI, dataset: Path) -> None:
    assert "injected while mid-run" in fail("mid-run")(webui, dataset)["error"]
    advice = fail("out of memory")(webui, dataset)["error"]
    assert "not enough memory" in advice and "gradient_checkpointing" in advice


def test_a_run_goes_on_where_a_sample_fails(webui: WebUI, dataset: Path) -> None:
    record = fail("preview", **DRAWN)(webui, dataset)
    assert record["state"] == "finished"
    status = webui.call(f"{API}/status?run={record['id']}")
    assert status["samples"] == 1  # of the second epoch
    told = [each["text"] for each in status["messages"] if each["level"] == "warning"]
    assert any("of step 3 was not drawn: injected while preview" in text for text in told)


def test_the_network_of_the_last_picture_is_not_trained_upon(webui: WebUI, dataset: Path) -> None:
    """Whoever has put it into the weights: the next run's file is the one that comes from the bare checkpoint."""
    from safetensors.numpy import load_file

    finish(webui, dataset)
    used = webui.networks / f"{NAME}.safetensors"
    used.rename(webui.networks / f"{NAME}-used.safetensors")
    expected = load_file(webui.networks / f"{NAME}-used.safetensors")
    bare = webui.generate("a house").pictures[0]
    try:
        for who in ("LoRA Workshop", "built-in"):
            webui.set_options(lora_workshop_tags=who)
            patched = webui.generate(f"a house <lora:{NAME}-used:3>").pictures[0]
            assert not np.array_equal(patched, bare)
            finish(webui, dataset)
            trained = load_file(used)
            assert all(np.array_equal(trained[key], expected[key]) for key in expected), who
            assert np.array_equal(webui.generate("a house").pictures[0], bare)
            assert np.array_equal(webui.generate(f"a house <lora:{NAME}-used:3>").pictures[0], patched)
    finally:
        webui.set_options(lora_workshop_tags="LoRA Workshop")
