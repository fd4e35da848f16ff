"""`python run.py bench`: runs every measurement in a process of its own and prints a table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import against_builtin, against_file_tools, against_sd_scripts
from benchmarks.subjects import SIZES, checkpoint_of

ROOT = Path(__file__).resolve().parents[1]
MEASUREMENTS = ("training", "rendering", "switching")


def main() -> int:
    """Measure, print, and write the JSON file where one is asked for."""
    if "--file-tools" in sys.argv[1:]:
        return against_file_tools.main(sys.argv[1:])
    if any(argument.startswith("--against-sd-scripts") for argument in sys.argv[1:]):
        return against_sd_scripts.main(sys.argv[1:])
    if any(argument.startswith("--against-builtin") for argument in sys.argv[1:]):
        return against_builtin.main(sys.argv[1:])
    options = parse_arguments()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="lora-workshop-bench-") as folder:
        for size in options.sizes:
            checkpoint = checkpoint_of(size, Path(folder))
            for name in options.only or MEASUREMENTS:
                print(f"measuring {name} ({size}) …", file=sys.stderr, flush=True)
                results += measure(name, size, checkpoint, options)
    report = {"machine": machine(options.device), "results": results}
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    return 0


def parse_arguments() -> argparse.Namespace:
    """What to measure, and on what."""
    parser = argparse.ArgumentParser(
        prog="run.py bench",
        description="Measure training, rendering and switching.",
        epilog="--against-sd-scripts DIR compares training with sd-scripts' instead, --against-builtin WEBUI applying "
        "networks with the WebUI's built-in Lora; with --file-tools the first compares merging, resizing and "
        "extracting. All have options of their own.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument(
        "--full", action="store_true", help="also with a full-size SD1 of random weights (2 GB on disk)"
    )
    parser.add_argument(
        "--sdxl",
        action="store_true",
        help="SDXL of random weights instead, in bf16 with gradient checkpointing (7 GB on disk, 20 GB of memory)",
    )
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, help="leave out the others; may be repeated")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument("--resolution", type=int, metavar="PX", help=f"default: {SIZES['demo'].resolution}")
    parser.add_argument("--threads", type=int, metavar="N", help="torch's threads (default: its own choice)")
    options = parser.parse_args()
    options.json = options.json.resolve() if options.json else None
    options.sizes = ["sdxl"] if options.sdxl else ["demo", "full"] if options.full else ["demo"]
    return options


def measure(name: str, size: str, checkpoint: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One measurement in a fresh process, so that its peak memory is its own; its lines of figures."""
    command = [sys.executable, "-m", "benchmarks.measure", name, size, str(checkpoint), options.device]
    command += [str(options.resolution or SIZES[size].resolution), str(options.threads or 0)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def machine(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    import torch

    gpu = torch.cuda.get_device_name() if device != "cpu" and torch.cuda.is_available() else None
    return {"system": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__, "gpu": gpu}


def table(results: list[dict[str, Any]]) -> str:
    """The figures in columns for a terminal."""
    rows = [("size", "what", "figure", "unit", "peak GB")]
    rows += [(r["size"], r["what"], f"{r['value']:.4g}", r["unit"], f"{r['peak_gb']:.2f}") for r in results]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
