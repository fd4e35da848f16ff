"""`run.py demo` shows what it promises: the concept is learned, the base is kept, in minutes and little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_ext.demo.assets import demo_dataset_path
from lora_ext.demo.concept import detect_concept
from lora_ext.demo.drawing import BACKGROUNDS, POSITIONS
from lora_ext.demo.judge import PROMPT, Judge, unseen_prompts
from lora_ext.demo.run import WEIGHTS, demo_config, open_demo_host
from lora_ext.networks.file import scan_network

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one demo, run in a process of its own with torch's own number of threads."""
    out = tmp_path_factory.mktemp("demo") / "out"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-m", "lora_ext", "demo", "--no-ui", "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "house with the network" in done.stdout
    return out


@pytest.fixture(scope="session")
def report(demo_folder: Path) -> dict[str, Any]:
    """The demo's report."""
    found: dict[str, Any] = json.loads((demo_folder / "report.json").read_text(encoding="utf-8"))
    return found


def test_files(demo_folder: Path, report: dict[str, Any]) -> None:
    config = demo_config()
    epochs, every, name = config.learning.max_train_epochs, config.saving.save_every_n_epochs, config.saving.output_name
    assert epochs is not None and every is not None
    kept = range(every, epochs, every)
    expected = [f"{name}-{epoch:06d}.safetensors" for epoch in kept] + [f"{name}.safetensors"]
    assert [Path(file).name for file in report["files"]] == expected
    assert all((demo_folder / file).is_file() for file in report["files"])
    assert scan_network(demo_folder / report["files"][-1]).metadata["ss_epoch"] == str(epochs)
    assert len(report["losses"]) == report["steps"]
    assert len(list((demo_folder / "samples").glob("*.png"))) == 6
    with Image.open(demo_folder / "grid.png") as grid:
        assert grid.width > 64 * (len(expected) + 1) and grid.height > 64 * len(WEIGHTS)
    assert len(report["cells"]) == (len(expected) + 1) * len(WEIGHTS)


def test_time_and_memory(report: dict[str, Any]) -> None:
    assert report["seconds"]["total"] < 240
    assert report["peak_memory_gb"] < 2


def test_concept_is_learned(report: dict[str, Any]) -> None:
    judged = report["judgement"]
    assert judged["judged"] == 20
    assert judged["concept"] >= 0.80
    assert judged["concept_in_base"] <= 0.05
    assert judged["elsewhere"] >= 0.60


def test_grid_scores_rise_with_the_weight(report: dict[str, Any]) -> None:
    without = {cell["concept_score"] for cell in report["cells"] if "<lora:" not in cell["prompt"]}
    assert without == {0.0}
    last = report["cells"][-1]
    assert last["weight"] == "weight 1" and last["concept_score"] >= 0.8
    assert last["concept_score"] > report["cells"][len(report["cells"]) // len(WEIGHTS) - 1]["concept_score"]


def test_other_prompts_keep_their_shapes_and_colours(report: dict[str, Any]) -> None:
    assert report["judgement"]["plain_kept"] >= 0.80


def test_weight_zero_is_the_base(demo_folder: Path, report: dict[str, Any]) -> None:
    """Looked at again in this process, against a host that never had a network."""
    assert report["judgement"]["weight_zero_is_base"] is True
    name = demo_config().saving.output_name
    judge = Judge(open_demo_host(demo_folder), name)
    fresh = Judge(open_demo_host(demo_folder), name)
    with_network = judge.pictures(judge.tagged(PROMPT), 2)
    zero = judge.pictures(judge.tagged(PROMPT, 0.0), 2)
    base = fresh.pictures(PROMPT, 2)
    assert [picture.tobytes() for picture in zero] == [picture.tobytes() for picture in base]
    assert [picture.tobytes() for picture in with_network] != [picture.tobytes() for picture in base]
    assert all(detect_concept(picture) for picture in with_network)


def test_new_surroundings_are_new() -> None:
    """The prompts of the generalisation name no background and no place of the dataset's captions."""
    words = " ".join(path.read_text(encoding="utf-8") for path in demo_dataset_path().rglob("*.txt"))
    prompts = unseen_prompts(demo_dataset_path(), 20)
    assert len(prompts) == 20
    for prompt in prompts:
        ground = next(name for name in BACKGROUNDS if f"on a {name} background" in prompt)
        place = next(name for name in sorted(POSITIONS, key=len, reverse=True) if prompt.endswith(f"in the {name}"))
        assert f"{ground} background" not in words
        assert f"in the {place}" not in words
