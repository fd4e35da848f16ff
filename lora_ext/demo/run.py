"""The demo: trains on the demo pictures, draws the epoch × weight grid, and judges what came out."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ext.config.toml_files import read_config
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.demo.assets import demo_checkpoint_path, demo_config_path, demo_dataset_path
from lora_ext.demo.concept import concept_score
from lora_ext.demo.judge import PROMPT, Judge, Judgement
from lora_ext.demo.memory import peak_memory_gb
from lora_ext.grid.render import Grid, epoch_weight_grid
from lora_ext.host.standalone.host import StandaloneHost, save_image
from lora_ext.jobs.console import TqdmEvents
from lora_ext.jobs.recording import train_recorded
from lora_ext.jobs.records import RunRecord
from lora_ext.jobs.registry import RunRegistry
from lora_ext.networks.library import NetworkLibrary
from lora_ext.protocols import Control, Progress, UserError
from lora_ext.training.checks import prepare_run

WEIGHTS = (0.4, 0.6, 0.8, 1.0)
CELL_SEEDS = 4
SAMPLES = 6


@dataclass(frozen=True)
class DemoReport:
    """What the demo has shown; the same is in report.json."""

    steps: int
    losses: list[float | None]
    files: list[str]
    seconds: dict[str, float]
    peak_memory_gb: float
    cells: list[dict[str, Any]]
    judgement: Judgement
    grid: str

    def lines(self) -> list[str]:
        """The report in short lines for a person."""
        found = self.judgement
        return [
            "",
            f"Trained {self.steps} steps in {self.seconds['training']:.0f} s: {Path(self.files[-1]).name}",
            f"  house with the network    {found.concept:4.0%} of {found.judged} seeds",
            f"  house without it          {found.concept_in_base:4.0%}",
            f"  house in new surroundings {found.elsewhere:4.0%}",
            f"  other prompts unchanged   {found.plain_kept:4.0%} right, {found.plain_base:.0%} without the network",
            f"  weight 0 is the base      {'to the pixel' if found.weight_zero_is_base else 'NO'}",
            f"{self.seconds['total']:.0f} s in all, {self.peak_memory_gb:.1f} GB at most. Grid: {self.grid}",
        ]


def open_demo_host(home: Path) -> StandaloneHost:
    """The standalone host on the demo checkpoint."""
    return StandaloneHost(demo_checkpoint_path(), home)


def demo_config() -> TrainConfig:
    """The demo's settings, with the place of its pictures filled in."""
    return make_config({"train_data_dir": str(demo_dataset_path())}, read_config(demo_config_path()))


def run_demo(out: Path, control: Control) -> DemoReport:
    """Train, draw, judge; writes networks, grid.png, samples and report.json under `out`, which is a home folder."""
    begun = time.perf_counter()
    host = open_demo_host(out)
    config = demo_config()
    loaded = time.perf_counter()
    record, losses = _train(host, config, control)
    trained = time.perf_counter()
    control.raise_if_stopping()
    judge = Judge(host, config.saving.output_name)
    grid, cells = _draw(host, judge, out, _shown("pictures of the grid", control))
    drawn = time.perf_counter()
    judgement = judge.judge(demo_dataset_path(), _shown("judging", control))
    for made in host.generate(judge.request(judge.tagged(PROMPT), count=SAMPLES)):
        save_image(made, out / "samples")
    ended = time.perf_counter()
    seconds = {
        "loading": loaded - begun,
        "training": trained - loaded,
        "grid": drawn - trained,
        "judging": ended - drawn,
    }
    seconds["total"] = ended - begun
    files = [str(Path(file).relative_to(out)) for file in record.files]
    report = DemoReport(record.steps, losses, files, seconds, peak_memory_gb(), cells, judgement, str(grid))
    text = json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False)
    (out / "report.json").write_text(text, encoding="utf-8")
    return report


def _train(host: StandaloneHost, config: TrainConfig, control: Control) -> tuple[RunRecord, list[float | None]]:
    """A run as any other, entered in the registry: the app shows it afterwards."""
    registry = RunRegistry(host.folders().runs)
    prepared = prepare_run(config, host.folders().networks[0])
    run = registry.create_prepared(prepared, checkpoint=host.checkpoint_info().name)
    record = train_recorded(host, run, config, control, [TqdmEvents()])
    if record.state == "failed":
        raise UserError(record.error)
    return record, [step.loss for step in registry.steps(record.id)]


def _draw(host: StandaloneHost, judge: Judge, out: Path, progress: Progress) -> tuple[Path, list[dict[str, Any]]]:
    """The grid as a picture, and the share of seeds with the concept for each of its cells."""
    library = NetworkLibrary(host.folders().networks)
    grid = epoch_weight_grid(host, judge.request(PROMPT), judge.network, None, WEIGHTS, library, progress=progress)
    path = out / "grid.png"
    grid.save(path)
    return path, _scored(grid, judge)


def _scored(grid: Grid, judge: Judge) -> list[dict[str, Any]]:
    """Each cell with its concept score, the share of seeds that show the concept, and how much of it is right in the
    cell's own picture (`overlap`, 0…1); cells of the same prompt are rendered once.
    """
    scores: dict[str, float] = {}
    cells = []
    for cell in (cell for row in grid.cells for cell in row):
        prompt = cell.request.prompt
        if prompt not in scores:
            scores[prompt] = judge.concept_share(prompt, CELL_SEEDS)
        known = {"epoch": cell.column, "weight": cell.row, "prompt": prompt, "seed": cell.request.seed}
        cells.append({**known, "concept_score": scores[prompt], "overlap": round(concept_score(cell.image), 3)})
    return cells


def _shown(what: str, control: Control) -> Callable[[int, int], None]:
    """Progress for a terminal; ends the demo where that was asked for."""

    def show(done: int, total: int) -> None:
        control.raise_if_stopping()
        print(f"\r{what}: {done}/{total} ", end="\n" if done >= total else "", file=sys.stderr, flush=True)

    return show
