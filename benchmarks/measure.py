"""One measurement in a process of its own; its figures go to standard output as one line of JSON.

Arguments: name, size, checkpoint, device, resolution in pixels, torch threads (0: torch's choice).
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.subjects import SIZES, Size, training_config, write_pictures
from lora_ext.apply.active import ActiveNetworks
from lora_ext.apply.tags import parse_tags
from lora_ext.checkpoint.patches import PatchLedger
from lora_ext.demo.memory import peak_memory_gb
from lora_ext.host.standalone.host import StandaloneHost
from lora_ext.protocols import Events, GenerateRequest, StepReport
from lora_ext.training.trainer import Trainer

WARMUP_STEPS = 3
Figure = tuple[str, float, str]


class StepTimes(Events):
    """Keeps how long each step took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def step(self, report: StepReport) -> None:
        """Note a step."""
        self.seconds.append(report.seconds)


def training(host: StandaloneHost, size: Size, resolution: int, folder: Path) -> Iterator[Figure]:
    """Steps per second after the first few, with latents cached, text encoder trained."""
    train(host, size, resolution, folder, times := StepTimes())
    seconds = statistics.median(times.seconds[min(WARMUP_STEPS, size.training_steps - 1) :])
    yield f"training, {resolution} px, batch {size.batch}", 1 / seconds, "steps/s"


def train(host: StandaloneHost, size: Size, resolution: int, folder: Path, events: Events) -> None:
    """Train the subject network into the host's folder for networks."""
    write_pictures(folder / "pictures", resolution)
    config = training_config(size, resolution, folder / "pictures", host.folders().networks[0])
    with host.borrow() as borrow:
        Trainer(borrow.checkpoint, config, Path(config.saving.output_dir), events).run()


def rendering(host: StandaloneHost, size: Size, resolution: int, folder: Path) -> Iterator[Figure]:
    """Seconds for a picture of 20 steps with guidance; the first is not counted."""
    request = GenerateRequest("a red circle", width=resolution, height=resolution, seed=1)
    seconds = [timed(lambda: host.generate(request)) for _ in range(size.images + 1)][1:]
    yield f"picture, {resolution} px, 20 steps", statistics.median(seconds), "s"


def switching(host: StandaloneHost, size: Size, resolution: int, folder: Path) -> Iterator[Figure]:
    """Seconds to apply a network, to change its weight, to leave it alone, and to restore."""
    train(host, size, resolution, folder, Events())
    active = ActiveNetworks(host.loaded.checkpoint, PatchLedger(), host.library)
    tags = {weight: parse_tags(f"<lora:bench:{weight}>").tags for weight in (0.5, 1.0)}
    yield "network, first applied", timed(lambda: active.activate(tags[1.0])), "s"
    changes = [timed(lambda each=number: active.activate(tags[0.5 + each % 2 / 2])) for number in range(size.switches)]
    yield "network, weight changed", statistics.median(changes), "s"
    last = tags[0.5 + (size.switches - 1) % 2 / 2]
    yield "network, unchanged", statistics.median(timed(lambda: active.activate(last)) for _ in range(5)), "s"
    yield "network, removed", timed(active.deactivate), "s"


def timed(action: Any) -> float:
    """Seconds that a call takes, the device's work included."""
    begun = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def peak_gb() -> float:
    """The process's peak so far: of the device's memory where one is used, of main memory otherwise."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_memory_gb()


def main(name: str, size_name: str, checkpoint: str, device: str, resolution: str, threads: str) -> None:
    """Measure and print."""
    if int(threads):
        torch.set_num_threads(int(threads))
    measurement = {"training": training, "rendering": rendering, "switching": switching}[name]
    with tempfile.TemporaryDirectory(prefix="lora-workshop-bench-") as folder:
        size = SIZES[size_name]
        host = StandaloneHost(Path(checkpoint), Path(folder) / "home", device=device, dtype=size.dtype)
        figures = list(measurement(host, size, int(resolution), Path(folder)))
    peak = peak_gb()
    keys = ("what", "value", "unit")
    print(json.dumps([{"size": size_name, **dict(zip(keys, each, strict=True)), "peak_gb": peak} for each in figures]))


if __name__ == "__main__":
    main(*sys.argv[1:])
