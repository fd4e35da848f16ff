"""SD2 and SDXL in a real WebUI: trained on, drawn, paused and tried, and exactly as they were afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from algorithm_table import rows
from base_checkpoints import BASES, write_base
from network_files import difference
from PIL import Image
from runs import API, ended, start, wait_for
from safetensors.numpy import load_file
from test_axes import EPOCH, WEIGHT, plot
from test_samples import pixels

from lora_ext.demo.webui_export import NAME as DEMO

if TYPE_CHECKING:
    from conftest import WebUI

pytestmark = [pytest.mark.webui, pytest.mark.usefixtures("no_files_left")]

NAME = "lw-test-bases"
PROMPT = "a thing"
DRAWN: dict[str, Any] = {
    "sample_every_n_epochs": 1, "sample_prompts": f"{PROMPT} --s 4 --l 5 --d 7 --w 128 --h 128",
    "sample_sampler": "Euler",
}  # fmt: skip
LEARNS = {"learning_rate": 3e-2, "save_precision": "float"}
MANY = {**LEARNS, "max_train_epochs": 400, "save_every_n_epochs": 400}
TAG = f"{PROMPT} <lora:{NAME}:1>"
MODULES = {"sd1-inpainting": (192, 12), "sd2": (192, 12), "sd2-v": (192, 12), "sdxl": (192, 30)}
"""How many sd-scripts adapts of the U-Net, and of the text encoders, whose last layer SD2 leaves out."""
PREFIXES = {"sdxl": {"lora_te1", "lora_te2"}, **dict.fromkeys(("sd1-inpainting", "sd2", "sd2-v"), {"lora_te"})}


@pytest.fixture(scope="module")
def titles(webui: WebUI) -> Iterator[dict[str, str]]:
    """Title of a small checkpoint of each kind; afterwards the one from before is loaded."""
    folder = webui.folder / "models" / "Stable-diffusion"
    before = webui.call("/sdapi/v1/options")
    files = [file for kind in BASES for file in write_base(folder, kind)]
    webui.call("/sdapi/v1/refresh-checkpoints", {})
    webui.set_options(show_progress_type="Approx cheap")  # the usual one would be downloaded for SDXL
    known = {each["model_name"]: each["title"] for each in webui.call("/sdapi/v1/sd-models")}
    yield {kind: known[f"lw-base-{kind}"] for kind in BASES}
    webui.set_options(**{name: before[name] for name in ("sd_model_checkpoint", "show_progress_type")})
    for file in files:
        file.unlink()
    webui.call("/sdapi/v1/refresh-checkpoints", {})


@pytest.fixture(scope="module", params=BASES)
def base(request: pytest.FixtureRequest, webui: WebUI, titles: dict[str, str]) -> str:
    """The kind of the checkpoint that is loaded: each."""
    webui.set_options(sd_model_checkpoint=titles[request.param])
    return str(request.param)


@pytest.fixture(scope="module", params=["sd2", "sdxl"])
def text_base(request: pytest.FixtureRequest, webui: WebUI, titles: dict[str, str]) -> str:
    """Likewise: each with other text encoders."""
    webui.set_options(sd_model_checkpoint=titles[request.param])
    return str(request.param)


def picture(webui: WebUI, prompt: str = PROMPT, **fields: Any) -> np.ndarray:
    return webui.generate(prompt, **fields).pictures[0]


def state(webui: WebUI) -> dict[str, Any]:
    found: dict[str, Any] = webui.call("/lw-probe/state")
    return found


def trained(webui: WebUI, dataset: Path, **settings: Any) -> dict[str, Any]:
    record = ended(webui, start(webui, dataset, NAME, **{**LEARNS, **settings}))
    assert record["state"] == "finished", record["error"]
    return record


@contextmanager
def tags_left_to_the_builtin(webui: WebUI) -> Iterator[None]:
    webui.set_options(lora_workshop_tags="built-in")
    try:
        yield
    finally:
        webui.set_options(lora_workshop_tags="LoRA Workshop")


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {key for key in before if before[key] != after[key]}


def test_text_unet_and_vae_are_those_of_the_webui(webui: WebUI, base: str) -> None:
    prompts = ["a red (house:1.2), with [trees] BREAK on a hill"]
    found = webui.call("/lw-probe/bases/compare", {"prompts": prompts, "size": [128, 64]})
    assert found.keys() == {"states", "U-Net", "latents", "pictures", *(["vector"] if base == "sdxl" else [])}
    assert max(found.values()) < 1e-5, found


def test_a_training_and_its_file(webui: WebUI, dataset: Path, base: str) -> None:
    """The WebUI is as it was; samples are pictures of the file, and the built-in and the grid draw the same from it."""
    bare, before = picture(webui), state(webui)
    record = trained(webui, dataset, **DRAWN)
    assert changed(before, state(webui)) == set()
    assert np.array_equal(picture(webui), bare)
    keys = {key.partition(".")[0] for key in load_file(webui.networks / f"{NAME}.safetensors")}
    unet = {key for key in keys if key.startswith("lora_unet_")}
    assert (len(unet), len(keys - unet)) == MODULES[base]
    assert {key.partition("_text_model_")[0] for key in keys - unet} == PREFIXES[base]
    samples = webui.call(f"{API}/run/{record['id']}/samples")["samples"]
    ours = picture(webui, TAG)
    assert difference(ours, bare) > 1 and difference(pixels(webui, samples[1]["url"]), ours) < 0.1
    cells, _ = plot(webui, TAG, (EPOCH, "1, 2"), (WEIGHT, "0.5, 1"))
    assert np.array_equal(cells[3], ours)
    assert np.array_equal(cells[0], picture(webui, f"{PROMPT} <lora:{NAME}-000001:0.5>"))
    with tags_left_to_the_builtin(webui):
        assert difference(picture(webui, TAG), ours) < 0.1
    assert np.array_equal(picture(webui), bare)


def test_a_cancelled_run(webui: WebUI, dataset: Path, text_base: str) -> None:
    bare, before = picture(webui), state(webui)
    run = start(webui, dataset, NAME, **MANY)
    wait_for(webui, run, lambda status: status["record"]["steps"] >= 2)
    webui.call(f"{API}/cancel", {"id": run})
    assert ended(webui, run)["state"] == "stopped"
    assert changed(before, state(webui)) == set()
    assert np.array_equal(picture(webui), bare)


ENDS: dict[str, tuple[dict[str, Any], str]] = {
    "mid-run": ({"gradient_checkpointing": True}, "failed"),
    "VAE of a preview": (
        {**DRAWN, "mixed_precision": "bf16", "full_bf16": True, "network_train_unet_only": True}, "finished",
    ),
}  # fmt: skip


@pytest.mark.parametrize("phase", ENDS)
def test_what_goes_wrong_leaves_nothing_behind(webui: WebUI, dataset: Path, text_base: str, phase: str) -> None:
    """A decoding that gives NaN too: the WebUI casts the VAE for good then, and a training takes that back."""
    settings, expected = ENDS[phase]
    webui.set_options(auto_vae_precision_bfloat16=True)
    bare, before = picture(webui), state(webui)
    webui.call("/lw-probe/arm", {"phase": phase})
    record = ended(webui, start(webui, dataset, NAME, **settings))
    assert record["state"] == expected, record["error"]
    assert changed(before, state(webui)) == set()
    assert np.array_equal(picture(webui), bare)
    webui.set_options(auto_vae_precision_bfloat16=False)


def test_a_pause_in_which_the_network_is_tried(webui: WebUI, dataset: Path, text_base: str) -> None:
    trained(webui, dataset, max_train_epochs=4)
    expected = load_file(webui.networks / f"{NAME}.safetensors")
    bare, before = picture(webui), state(webui)
    run = start(webui, dataset, NAME, **{**MANY, "max_train_epochs": 4})
    wait_for(webui, run, lambda status: status["record"]["steps"] >= 2)
    webui.call(f"{API}/pause", {"id": run})
    wait_for(webui, run, lambda status: status["record"]["state"] == "paused")
    assert changed(before, state(webui)) == set()
    assert difference(picture(webui, f"{PROMPT} <lora:{NAME}-live:1>"), bare) > 0.5
    assert np.array_equal(picture(webui), bare)
    webui.call(f"{API}/resume", {"id": run})
    assert ended(webui, run)["state"] == "finished"
    found = load_file(webui.networks / f"{NAME}.safetensors")
    assert found.keys() == expected.keys() and all(np.array_equal(found[key], expected[key]) for key in found)


def test_class_pictures(webui: WebUI, dataset: Path, text_base: str, tmp_path: Path) -> None:
    bare = picture(webui)
    drawn = {"reg_data_dir": str(tmp_path / "class"), "class_prompt": "a circle", "num_class_images": 2}
    trained(webui, dataset, **drawn, gradient_checkpointing=True)
    assert [Image.open(path).size for path in (tmp_path / "class").rglob("*.png")] == [(64, 64)] * 2
    assert np.array_equal(picture(webui), bare)


ALGORITHMS: dict[str, dict[str, Any]] = {
    "LoCon, Tucker": {"conv_dim": 2, "use_tucker": True},
    "DoRA": {"dora_wd": True},
    "DoRA on the input": {"dora_wd": True, "wd_on_output": False},
    "norms": {"train_norm": True},
    **{name: {"network_algorithm": name, "conv_dim": 2} for name in ("loha", "lokr", "boft")},
    **{name: {"network_algorithm": name} for name in ("dylora", "ia3", "full", "diag-oft", "glora", "tlora")},
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm(webui: WebUI, dataset: Path, text_base: str, algorithm: str) -> None:
    """The last sample, with the network in training in the forward pass, is the picture with the file's tag."""
    bare, before = picture(webui), state(webui)
    settings = {**DRAWN, **ALGORITHMS[algorithm], "learning_rate": 1e-2, "max_train_epochs": 1}
    record = trained(webui, dataset, **settings)
    assert changed(before, state(webui)) == set()
    (sample,) = webui.call(f"{API}/run/{record['id']}/samples")["samples"]
    tagged = picture(webui, TAG)
    assert webui.call("/lw-probe/tags/comments") == []
    assert difference(pixels(webui, sample["url"]), tagged) < 0.1
    assert difference(tagged, bare) > 0.3
    cells, _ = plot(webui, TAG, (EPOCH, "1"), (WEIGHT, "0.5, 1"))
    assert np.array_equal(cells[1], tagged) and not np.array_equal(cells[0], tagged)
    assert np.array_equal(picture(webui), bare)


def test_medvram(another_webui: Callable[..., Any], webui: WebUI, dataset: Path, titles: dict[str, str]) -> None:
    """The same pictures and the same network where SDXL's parts take turns on the device.

    The demo is loaded first, as in the other WebUI: weights that lie elsewhere in memory may be rounded otherwise.
    """
    webui.set_options(sd_model_checkpoint=titles["sdxl"])
    bare = picture(webui)
    trained(webui, dataset)
    expected = load_file(webui.networks / f"{NAME}.safetensors")
    chosen = {"sd_model_checkpoint": f"{DEMO}.safetensors", "show_progress_type": "Approx cheap"}
    with another_webui("--medvram-sdxl", settings=chosen) as sparing:
        sparing.set_options(sd_model_checkpoint=titles["sdxl"])
        assert np.array_equal(picture(sparing), bare)
        before = state(sparing)
        trained(sparing, dataset)
        assert changed(before, state(sparing)) == set()
        assert np.array_equal(picture(sparing), bare)
    found = load_file(webui.networks / f"{NAME}.safetensors")
    assert found.keys() == expected.keys() and all(np.array_equal(found[key], expected[key]) for key in found)


DIFFERENT = {"(IA)³", "(IA)³, half", "GLoRA", "DoRA, out", "LoRA, then DoRA", "LoRA twice"}
"""Where the built-in is wrong on SDXL: docs/built-in-lora.md has the causes."""


def test_networks_of_all_kinds_beside_the_builtin(webui: WebUI, titles: dict[str, str]) -> None:
    webui.set_options(sd_model_checkpoint=titles["sdxl"])
    bare = picture(webui)
    found = rows(webui, webui.folder / "models" / "Stable-diffusion" / "lw-base-sdxl.safetensors")
    assert [row.case for row in found if row.told] == []
    assert {row.case for row in found if row.to_builtin > 0.1} == DIFFERENT
    assert min(row.to_bare for row in found) > 1
    assert np.array_equal(picture(webui), bare)
