"""`python run.py bench --against-sd-scripts DIR --sd-python PYTHON`: ours and sd-scripts, side by side in one run.

The same full-size SD1 checkpoint of random weights, pictures, settings, first network, noise and timesteps for both:
how far losses and trained networks differ, and what each takes in time and memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.sd_scripts.cases import CASES
from benchmarks.sd_scripts.side_by_side import Outcome, Program, Size, run_case
from benchmarks.subjects import checkpoint_of


def main(arguments: Sequence[str]) -> int:
    """Run the wanted cases, print a table, write the JSON file where one is asked for; 1 where a limit is missed."""
    options = parse_arguments(arguments)
    size = Size(options.resolution, options.batch, options.steps, options.threads)
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="lora-workshop-bench-", dir=options.folder) as name:
        folder = Path(name)
        program = Program(
            options.against_sd_scripts.resolve(),
            options.sd_python.absolute(),
            folder / "tokenizers",
            options.huge_pages,
        )
        write_tokenizer(program.tokenizers)
        checkpoint = options.checkpoint or checkpoint_of("full", folder)
        for number, case in enumerate(options.case or CASES):
            print(f"{case}: {size.steps} steps on each side …", file=sys.stderr, flush=True)
            outcomes[case] = run_case(CASES[case], size, checkpoint, program, folder / f"case-{number}")
            print(lines_of(case, outcomes[case]), flush=True)
    if options.json:
        found = {case: dataclasses.asdict(outcome) for case, outcome in outcomes.items()}
        report = {"size": dataclasses.asdict(size), "cases": found}
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    missed = [case for case, outcome in outcomes.items() if not outcome.difference.within(CASES[case].limits)]
    print(f"beyond the limits: {', '.join(missed)}" if missed else "every case is within its limits")
    return 1 if missed else 0


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """What to run, and on what."""
    parser = argparse.ArgumentParser(prog="run.py bench", description="Compare training with sd-scripts' own.")
    parser.add_argument("--against-sd-scripts", type=Path, required=True, metavar="DIR", help="sd-scripts' folder")
    parser.add_argument(
        "--sd-python", type=Path, required=True, metavar="PYTHON", help="interpreter with sd-scripts' packages"
    )
    parser.add_argument("--case", action="append", choices=CASES, help="leave out the others; may be repeated")
    parser.add_argument("--steps", type=int, default=20, help="default: 20; the first two are not timed")
    parser.add_argument("--batch", type=int, default=2, help="pictures a step (default: 2)")
    parser.add_argument("--resolution", type=int, default=128, metavar="PX", help="a multiple of 128 (default: 128)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="torch's threads on both sides")
    parser.add_argument(
        "--huge-pages", action="store_true", help="lend sd-scripts the memory setting that our command line makes"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="an SD1 checkpoint instead of random weights")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to put 3 GB of temporary files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args(arguments)
    options.json = options.json.resolve() if options.json else None
    if options.resolution % 128 or options.steps < 4:
        parser.error("--resolution is a multiple of 128, and --steps at least 4")
    return options


def write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer where sd-scripts looks for it before it asks the network."""
    from lora_ext.checkpoint.text.bpe import write_tokenizer_folder

    write_tokenizer_folder(folder / "openai_clip-vit-large-patch14")


def lines_of(case: str, outcome: Outcome) -> str:
    """A case's figures in words."""
    found, ours, theirs = outcome.difference, outcome.ours, outcome.theirs
    verdict = "within" if found.within(CASES[case].limits) else "BEYOND"
    return (
        f"{case}: {verdict} the limits\n"
        f"  losses differ by {found.loss:.1e}; trained modules by {found.median:.1e} (median), {found.maximum:.1e} "
        f"(largest: {found.worst_module})\n"
        f"  s/step {ours.step:.3f} to {theirs.step:.3f} ({ours.step / theirs.step:.2f}×), of the processor "
        f"{ours.processor:.3f} to {theirs.processor:.3f} ({ours.processor / theirs.processor:.2f}×)\n"
        f"  start {ours.startup:.1f} to {theirs.startup:.1f} s, peak {ours.peak_gb:.2f} to {theirs.peak_gb:.2f} GB"
    )
