"""The measurements run, on a tiny checkpoint, and say what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import table
from benchmarks.measure import rendering, switching, training
from benchmarks.subjects import Size
from lora_ext.host.standalone.host import StandaloneHost

ROOT = Path(__file__).resolve().parents[2]
SMALL = Size(resolution=64, batch=4, training_steps=4, images=1, switches=2)


def test_figures(tiny_host: StandaloneHost, tmp_path: Path) -> None:
    figures = [
        *training(tiny_host, SMALL, 64, tmp_path / "training"),
        *rendering(tiny_host, SMALL, 64, tmp_path),
        *switching(tiny_host, SMALL, 64, tmp_path / "switching"),
    ]
    assert [(what, unit) for what, _, unit in figures] == [
        ("training, 64 px, batch 4", "steps/s"),
        ("picture, 64 px, 20 steps", "s"),
        ("network, first applied", "s"),
        ("network, weight changed", "s"),
        ("network, unchanged", "s"),
        ("network, removed", "s"),
    ]
    assert all(value > 0 for _, value, _ in figures)


def test_table() -> None:
    rows = [{"size": "demo", "what": "picture", "value": 1.23456, "unit": "s", "peak_gb": 0.5}]
    assert table(rows) == "size  what     figure  unit  peak GB\ndemo  picture  1.235   s     0.50   "


@pytest.mark.slow
def test_the_command_writes_its_figures(tmp_path: Path) -> None:
    where = tmp_path / "bench.json"
    command = [sys.executable, "-m", "lora_ext", "bench", "--only", "switching", "--json", str(where)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    report = json.loads(where.read_text(encoding="utf-8"))
    assert set(report) == {"machine", "results"}
    assert {figure["size"] for figure in report["results"]} == {"demo"}
    assert len(report["results"]) == 4
