"""One case on both programs, each in a process of its own: ours first, then sd-scripts with what ours has drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from safetensors.torch import load_file

from benchmarks.sd_scripts.cases import Case, base_options, base_settings
from benchmarks.sd_scripts.compare import Difference, difference
from lora_ext.cli import HUGE_PAGES

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).resolve().parent / "driver.py"
SHAPES = ((1, 1), (1, 1), (1, 1), (3, 1), (3, 1), (1, 3), (1, 3), (1, 3))
"""The pictures' widths and heights in halves of the resolution, or in whole ones for squares: three buckets."""


@dataclass(frozen=True)
class Program:
    """sd-scripts: its folder, the interpreter that runs it, and a folder with CLIP's tokenizer for it.

    `huge_pages` lends it the memory setting that our command line makes; by itself it has none.
    """

    folder: Path
    python: Path
    tokenizers: Path
    huge_pages: bool = False


@dataclass(frozen=True)
class Size:
    """How large a run is: pixels, pictures a batch, steps, torch's threads."""

    resolution: int
    batch: int
    steps: int
    threads: int


@dataclass(frozen=True)
class Timing:
    """Seconds from the process's start to the first step, mean seconds of a step by the clock and of the processor
    (all threads together: other work on the machine disturbs them less), peak memory in GiB."""

    startup: float
    step: float
    processor: float
    peak_gb: float

    @classmethod
    def of(cls, report: Mapping[str, Any], spawned: float) -> Timing:
        """From a run's report; the first two steps warm up and are not counted."""
        times = report["times"]
        return cls(times[0] - spawned, mean_step(times), mean_step(report["processor_times"]), report["peak_gb"])


@dataclass(frozen=True)
class Outcome:
    """What a case came to."""

    difference: Difference
    ours: Timing
    theirs: Timing
    versions: Mapping[str, str]


def mean_step(times: Sequence[float]) -> float:
    """Mean step between these times, the first of which is the first step's beginning; two steps warm up.

    No median: the pictures' shapes and partial batches make steps of several lengths, the same on both sides.
    """
    return (times[-1] - times[2]) / (len(times) - 3)


def write_subject(folder: Path, resolution: int, long_captions: bool) -> None:
    """Pictures of the exact sizes of three buckets, in a folder as sd-scripts wants it, each with its own caption."""
    folder = folder / "1_subject"
    folder.mkdir(parents=True)
    for number, (wide, high) in enumerate(SHAPES):
        unit = resolution if wide == high else resolution // 2
        picture = Image.new("RGB", (wide * unit, high * unit), (30 * number, 80, 240 - 30 * number))
        drawing = ImageDraw.Draw(picture)
        drawing.ellipse((number, 2 * number, unit // 2 + number, unit // 2), fill=(250, 240, 30 * number))
        drawing.rectangle((unit // 3, unit // 2, unit - number, unit - 4), fill=(20 * number, 200, 90))
        picture.save(folder / f"{number}.png")
        caption = f"a yellow circle and a green square, number {number}"
        if long_captions and number % 2:
            caption += "".join(f", a word of colour {each} and of shape {number}" for each in range(12))
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")


def run_case(case: Case, size: Size, checkpoint: Path, program: Program, folder: Path) -> Outcome:
    """Make the case's run here, then there, and compare; `folder` is for everything that is written."""
    pictures, output = folder / "pictures", folder / "output"
    write_subject(pictures, size.resolution, case.long_captions)
    settings = {**base_settings(pictures, output, size.resolution, size.batch, size.steps), **case.settings}
    common = {"threads": size.threads, "handed": str(folder), "checkpoint": str(checkpoint)}
    ours, our_timing = run_job(
        [sys.executable, "-m", "benchmarks.sd_scripts.ours"], {**common, "settings": settings}, folder, "ours"
    )
    options = [
        *base_options(checkpoint, program.tokenizers, pictures, output, size.resolution, size.batch, size.steps),
        *("--network_weights", str(folder / "network.safetensors")),
        *case.options,
    ]
    job = {**common, "options": options, "sd_scripts": str(program.folder), "huge_pages": program.huge_pages}
    theirs, their_timing = run_job([str(program.python), str(DRIVER)], job, folder, "theirs")
    found = difference(
        ours["losses"],
        theirs["losses"],
        load_file(str(output / "ours.safetensors")),
        load_file(str(output / "theirs.safetensors")),
    )
    return Outcome(found, our_timing, their_timing, {**theirs["versions"], "our torch": ours["versions"]["torch"]})


def run_job(command: Sequence[str], job: Mapping[str, Any], folder: Path, name: str) -> tuple[dict[str, Any], Timing]:
    """Run a program on a job; its report, and its times from the start of the process on.

    What it prints goes into a log file; RuntimeError with the log's end where it fails.
    """
    report, log, path = (folder / f"{name}.{end}" for end in ("report.json", "log", "job.json"))
    path.write_text(json.dumps({**job, "report": str(report)}), encoding="utf-8")
    added = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": str(job["threads"])}
    added[HUGE_PAGES] = "1" if job.get("huge_pages", True) else "0"
    spawned = time.time()
    with log.open("wb") as output:
        done = subprocess.run(
            [*command, str(path)], cwd=ROOT, env={**os.environ, **added}, stdout=output, stderr=output, check=False
        )
    if done.returncode:
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        raise RuntimeError(f"{name}: the run failed ({done.returncode}); its log ends so:\n{end}")
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found, Timing.of(found, spawned)
