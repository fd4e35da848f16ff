"""`test`, `lint`, `bench`: the project's own habits, run from the folder that holds the sources."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lora_ext.protocols import UserError

SOURCES = Path(__file__).resolve().parents[2]
NEEDS_MORE = "not webui and not gpu"
"""pytest's marker expression without options: what any machine can run."""

_SIDE_BY_SIDE = ("-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadfile")
"""Several processes, each of which takes 2 GB of memory where full-size models are tested."""


def run(command: str, arguments: Sequence[str]) -> int:
    """Run `test`, `lint` or `bench`, handing `arguments` on; the exit code is the program's."""
    if not (SOURCES / "tests").is_dir():
        raise UserError(f"{command}: {SOURCES} holds no tests; this command works in a copy of the repository")
    if command == "test":
        if arguments:
            return _run(["pytest", *arguments])
        together = _run(["pytest", "-m", f"{NEEDS_MORE} and not alone", *_SIDE_BY_SIDE])
        return max(together, _run(["pytest", "-m", f"{NEEDS_MORE} and alone"]))
    if command == "bench":
        return _run(["benchmarks", *arguments])
    if arguments:
        if set(arguments) <= {"-h", "--help"}:
            print("usage: run.py lint\n\nruff check over everything, then mypy over lora_ext and run.py.")
            return 0
        raise UserError(f"lint: takes no options, and was given {' '.join(arguments)}")
    return max(_run(["ruff", "check", "."]), _run(["mypy"]))


def _run(module_and_arguments: Sequence[str]) -> int:
    """Run `python -m …` from the sources' folder, offline and with a fixed hash seed."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    environment = {**os.environ, **offline, "PYTHONHASHSEED": "0", "PYTHONPATH": str(SOURCES)}
    return subprocess.run(
        [sys.executable, "-m", *module_and_arguments], cwd=SOURCES, env=environment, check=False
    ).returncode
