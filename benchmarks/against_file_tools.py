"""`python run.py bench --file-tools --against-sd-scripts DIR --sd-python PYTHON`: file tools, ours and others'.

Both sides work on the same inputs of full size, in one run, each operation in a process of its own: wall time,
anonymous memory beyond the imports, and how far the results are apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.file_tools.context import Context
from benchmarks.file_tools.figures import Figure, table

TOOLS = {
    name: f"benchmarks.file_tools.{name.replace('-', '_')}"
    for name in ("resize", "merge-networks", "merge-checkpoint", "extract")
}
"""Each tool's module of measurements."""


def main(arguments: Sequence[str]) -> int:
    """Measure the wanted tools, print a table, write the JSON file where one is asked for; 1 for a missed limit."""
    options = parse_arguments(arguments)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="lora-workshop-bench-", dir=options.folder) as name:
        context = Context(
            Path(name),
            options.against_sd_scripts.resolve(),
            options.sd_python.absolute(),
            options.against_resize_lora.resolve() if options.against_resize_lora else None,
            options.checkpoint.resolve() if options.checkpoint else None,
            options.threads,
            options.device,
            options.modules,
            tuple(options.case or ()),
        )
        for tool in options.only or TOOLS:
            print(f"{tool} …", file=sys.stderr, flush=True)
            measure: Callable[[Context], list[Figure]] = importlib.import_module(TOOLS[tool]).measure
            found = measure(context)
            print(table(found), flush=True)
            figures += found
    if options.json:
        report = {"threads": options.threads, "figures": [dataclasses.asdict(each) for each in figures]}
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    missed = [f"{each.tool}, {each.case}" for each in figures if each.missed]
    print(f"beyond the limits: {'; '.join(missed)}" if missed else "all within the limits")
    return 1 if missed else 0


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """What to compare, and with what."""
    parser = argparse.ArgumentParser(prog="run.py bench", description="Compare the file tools with other programs'.")
    parser.add_argument("--file-tools", action="store_true", required=True, help="this comparison")
    parser.add_argument("--against-sd-scripts", type=Path, required=True, metavar="DIR", help="sd-scripts' folder")
    parser.add_argument(
        "--sd-python", type=Path, required=True, metavar="PYTHON", help="interpreter with sd-scripts' packages"
    )
    parser.add_argument(
        "--against-resize-lora", type=Path, metavar="DIR", help="the folder of elias-gaeros' resize_lora"
    )
    parser.add_argument("--only", action="append", choices=TOOLS, help="leave out the other tools; may be repeated")
    parser.add_argument(
        "--case", action="append", metavar="PART", help="only cases with this in their name; repeatable"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="an SD1 checkpoint instead of random weights")
    parser.add_argument("--modules", type=int, metavar="N", help="networks of N modules, for trying things out")
    parser.add_argument(
        "--threads", type=int, default=2, metavar="N", help="torch's threads on both sides (default: 2)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for our side")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to put up to 8 GB of temporary files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args(arguments)
    options.json = options.json.resolve() if options.json else None
    return options
