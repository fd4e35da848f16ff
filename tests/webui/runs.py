"""Trainings of a WebUI under test, through its routes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

from PIL import Image, ImageDraw

API = "/lora-workshop/api"
OTHER = "lw-test-other"  # name of the second checkpoint
SMALL: dict[str, Any] = {
    "resolution": "64", "min_bucket_reso": 32, "bucket_reso_steps": 8, "train_batch_size": 1, "network_dim": 4,
    "network_alpha": 4, "learning_rate": 1e-3, "max_train_epochs": 2, "seed": 3, "mixed_precision": "no",
}  # fmt: skip


class Caller(Protocol):
    """What of the WebUI under test is used here."""

    folder: Path

    def call(self, route: str, data: Any = None) -> Any:
        """GET, or POST where there is data."""


def draw_dataset(folder: Path, pictures: int = 3, repeats: int = 1) -> Path:
    """A dataset of small pictures with captions; returns its folder."""
    inside = folder / f"{repeats}_thing"
    inside.mkdir(parents=True)
    for number in range(pictures):
        picture = Image.new("RGB", (64, 64), (40 * number, 90, 160))
        ImageDraw.Draw(picture).ellipse((10, 10 + number, 50, 50), fill=(250, 200, 30 * number))
        picture.save(inside / f"{number}.png")
        (inside / f"{number}.txt").write_text(f"a thing, number {number}", encoding="utf-8")
    return folder


def start(webui: Caller, dataset: Path, name: str, **settings: Any) -> str:
    """Start a run; returns its id."""
    values = {**SMALL, "train_data_dir": str(dataset), "output_name": name, **settings}
    return str(webui.call(f"{API}/start", {"settings": values})["id"])


def ended(webui: Caller, run: str, seconds: float = 300) -> dict[str, Any]:
    """The run's record when it is over."""
    record: dict[str, Any] = wait_for(webui, run, lambda status: not status["active"], seconds)["record"]
    return record


def wait_for(webui: Caller, run: str, condition: Any, seconds: float = 300, pause: float = 0.1) -> dict[str, Any]:
    """The run's status as soon as it fulfils the condition; asks every `pause` seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status: dict[str, Any] = webui.call(f"{API}/status?run={run}")
        if condition(status):
            return status
        time.sleep(pause)
    raise AssertionError(f"run {run} did not come so far in {seconds} s: {status}")
