"""Networks merged into a checkpoint's file: in a real WebUI its pictures are those of the checkpoint with the tags."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from algorithm_files import write_algorithm
from base_checkpoints import BASES, write_base
from network_files import difference
from safetensors.torch import load_file, save_file

from lora_ext.checkpoint.file_weights import open_checkpoint_file
from lora_ext.demo.webui_export import NAME as DEMO
from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import Work

if TYPE_CHECKING:
    from conftest import WebUI

pytestmark = [pytest.mark.webui, pytest.mark.usefixtures("no_files_left")]

NAME = "lw-test-merged"
PROMPT = "a red star"
TAGS = f"{PROMPT} <lora:{NAME}-0:0.7> <lora:{NAME}-1:-0.4:0.5:lbw=OUTALL>"
ALGORITHMS = ("LoCon", "DoRA, out")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
MOST = {"fp32": 0.05, "fp16": 0.5}
"""Mean difference of the two pictures, in units of 1/255, by the precision of the checkpoint and the merged file."""


@pytest.fixture(scope="module")
def folder(webui: WebUI) -> Iterator[Path]:
    """The WebUI's checkpoints; those of this test go again, and the one from before is loaded."""
    folder = webui.folder / "models" / "Stable-diffusion"
    before = webui.call("/sdapi/v1/options")
    for kind in BASES:
        write_base(folder, kind)
    webui.set_options(show_progress_type="Approx cheap")  # the usual one would be downloaded for SDXL
    yield folder
    webui.set_options(**{name: before[name] for name in ("sd_model_checkpoint", "show_progress_type")})
    for file in (*folder.glob("lw-base-*.safetensors"), *folder.glob("lw-base-*.yaml"), *folder.glob(f"{NAME}*")):
        file.unlink()
    webui.call("/sdapi/v1/refresh-checkpoints", {})


def pictures(webui: WebUI, checkpoint: str, *prompts: str) -> list[np.ndarray]:
    """Of a checkpoint by its file's stem."""
    webui.call("/sdapi/v1/refresh-checkpoints", {})
    titles = {each["model_name"]: each["title"] for each in webui.call("/sdapi/v1/sd-models")}
    webui.set_options(sd_model_checkpoint=titles[checkpoint])
    return [webui.generate(prompt).pictures[0] for prompt in prompts]


def merge(checkpoint: Path, network: str, out: Path) -> None:
    """As the tags have it."""
    values = {"checkpoint": str(checkpoint), "network": network, "te_weight": "same\n-0.4", "lbw": "ALL\nOUTALL"}
    tool = tool_named("merge-checkpoint")
    tool.run(make_settings(tool, {**values, "out": str(out), "overwrite": True}), Work())


@pytest.mark.parametrize("precision", MOST)
@pytest.mark.parametrize("kind", [DEMO, *(f"lw-base-{name}" for name in BASES)])
def test_the_picture_is_that_of_the_tags(webui: WebUI, folder: Path, kind: str, precision: str) -> None:
    original = folder / f"{kind}.safetensors"
    file = open_checkpoint_file(original)
    weights = {key: value.float() for key, value in file.values(set(file.weights))}
    for number, algorithm in enumerate(ALGORITHMS):
        write_algorithm(webui.networks / f"{NAME}-{number}.safetensors", algorithm, weights, seed=number)
    base = folder / f"{NAME}-base.safetensors"
    first, second = (webui.networks / f"{NAME}-{number}.safetensors" for number in (0, 1))
    save_file({name: each.to(DTYPES[precision]) for name, each in load_file(original).items()}, base)
    shutil.copyfile(original.with_suffix(".yaml"), base.with_suffix(".yaml"))
    merge(base, f"{first}:0.7\n{second}:0.5", folder / f"{NAME}.safetensors")
    bare, tagged = pictures(webui, base.stem, PROMPT, TAGS)
    assert webui.call("/lw-probe/tags/comments") == []
    (merged,) = pictures(webui, NAME, PROMPT)
    print(f"{kind}, {precision}: {difference(tagged, merged):.4f} of {difference(tagged, bare):.2f}")
    assert difference(tagged, bare) > 1
    assert difference(tagged, merged) < MOST[precision]
