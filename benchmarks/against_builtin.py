"""`python run.py bench --against-builtin WEBUI --webui-python PYTHON`: applying networks, ours and the built-in's.

The WebUI's own code and ours in one process, on the same full-size weights (random, in memory) and the same six files:
a network's weight changed, another one of five, a sixth beside five; and the memory that it takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.applying.cases import Case

ROOT = Path(__file__).resolve().parents[1]
LEAST = 4.0  # times as fast, on a processor
LEAST_ON_GPU = 10.0
MOST_MEMORY = 1.05


def main(arguments: Sequence[str]) -> int:
    """Compare, print a table, write the JSON file where one is asked for; 1 where a limit is missed."""
    options = parse_arguments(arguments)
    case = Case(
        options.kind,
        options.dtype,
        options.rank,
        options.locon,
        not options.no_text_encoders,
        options.rounds,
        options.threads,
        options.device,
    )
    figures = compare(case, options.against_builtin.resolve(), options.webui_python.absolute())
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps({"case": dataclasses.asdict(case), **figures}, indent=2), encoding="utf-8")
    missed = beyond_limits(figures, LEAST if case.device == "cpu" else LEAST_ON_GPU)
    print(f"beyond the limits: {', '.join(missed)}" if missed else "all within the limits")
    return 1 if missed else 0


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """What to compare, and on what."""
    parser = argparse.ArgumentParser(
        prog="run.py bench", description="Compare applying with the WebUI's built-in Lora."
    )
    parser.add_argument("--against-builtin", type=Path, required=True, metavar="WEBUI", help="a WebUI's folder")
    parser.add_argument("--webui-python", type=Path, required=True, metavar="PYTHON", help="its interpreter")
    kinds = ("sd1", "sd2", "sdxl", "sdxl-part")
    parser.add_argument("--kind", choices=kinds, default="sd1", help="default: sd1; sdxl takes 25 GB, its part 9")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")
    parser.add_argument("--rank", type=int, default=32, help="of the networks (default: 32)")
    parser.add_argument("--locon", action="store_true", help="networks with convolutions")
    parser.add_argument("--no-text-encoders", action="store_true", help="the U-Net alone")
    parser.add_argument("--rounds", type=int, default=5, help="how often each change is timed (default: 5)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="torch's threads (default: its own choice)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args(arguments)
    options.json = options.json.resolve() if options.json else None
    return options


def compare(case: Case, webui: Path, python: Path) -> dict[str, Any]:
    """Both sides' figures, from a process of the WebUI's interpreter."""
    command = [str(python), "-m", "benchmarks.applying.compare", str(webui), json.dumps(dataclasses.asdict(case))]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(figures: dict[str, Any]) -> str:
    """The figures in columns for a terminal."""
    ours, theirs = figures["ours"], figures["built-in"]
    rows = [("", "ours", "built-in", "times as fast")]
    for what, value in ours.items():
        unit, faster = ("", "") if "memory" in what else (" s", f"{theirs[what] / value:.1f}")
        rows.append((what, f"{value:.3f}{unit}", f"{theirs[what]:.3f}{unit}", faster))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.append(f"touched: {figures['touched_gb']:.2f} GB; largest difference of ΔW: {figures['difference']:.1e}")
    return "\n".join(lines)


def beyond_limits(figures: dict[str, Any], least: float) -> list[str]:
    """What is slower, or takes more memory, than it may."""
    ours, theirs = figures["ours"], figures["built-in"]
    changes = ("weight changed", "another of five", "a sixth added")
    missed = [what for what in changes if theirs[what] < least * ours[what]]
    return missed + (["extra memory"] if ours["extra memory / touched"] > MOST_MEMORY else [])
