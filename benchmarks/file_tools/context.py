"""What a comparison is given: the other programs, a folder, inputs of full size, and both sides' processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.file_tools.figures import Side
from benchmarks.subjects import checkpoint_of
from lora_ext.cli import HUGE_PAGES

ROOT = Path(__file__).resolve().parents[2]
THEIRS = Path(__file__).resolve().parent / "theirs.py"


@dataclass(frozen=True)
class Context:
    """The other programs' folders and interpreter, a folder for everything that is written, and torch's threads.

    `modules` limits the inputs to that many of the modules, for trying things out; None is all of them. `cases` are
    parts of the names of the cases to run, empty for all.
    """

    folder: Path
    sd_scripts: Path
    sd_python: Path
    resize_lora: Path | None = None
    given_checkpoint: Path | None = None
    threads: int = 2
    device: str = "cpu"
    modules: int | None = None
    cases: Sequence[str] = ()

    @cached_property
    def checkpoint(self) -> Path:
        """A full-size SD1 checkpoint: the one that was given, or else one of random weights in fp16 (2 GB)."""
        return self.given_checkpoint or checkpoint_of("full", self.folder)

    def wants(self, case: str) -> bool:
        """Whether a case of this name is to be run."""
        return not self.cases or any(part in case for part in self.cases)

    def ours(self, tool: str, settings: Mapping[str, Any]) -> Side:
        """Run one of our tools in a process of its own; RuntimeError with the end of its log where it fails."""
        job = {"tool": tool, "settings": dict(settings), "device": self.device}
        return self._run([sys.executable, "-m", "benchmarks.file_tools.ours"], job, f"ours-{tool}")

    def sd_scripts_run(
        self, script: str, function: str, arguments: Sequence[str], values: Mapping[str, Any] | None = None
    ) -> Side:
        """Run sd-scripts' script (path in its folder) in a process of its own; `values` replace its module's."""
        return self.theirs(self.sd_scripts, script, function, arguments, values)

    def theirs(
        self,
        folder: Path,
        script: str,
        function: str,
        arguments: Sequence[str],
        values: Mapping[str, Any] | None = None,
    ) -> Side:
        """Run any program's script in sd-scripts' interpreter: `function` with what `setup_parser` makes of the
        arguments, or "main" as it is; RuntimeError with the end of its log where it fails."""
        job = {
            "folder": str(folder.resolve()),
            "script": script,
            "function": function,
            "arguments": list(arguments),
            "set": dict(values or {}),
        }
        return self._run([str(self.sd_python), str(THEIRS)], job, f"theirs-{Path(script).stem}")

    def _run(self, command: Sequence[str], job: Mapping[str, Any], name: str) -> Side:
        report, log, path = (self.folder / f"{name}.{end}" for end in ("report.json", "log", "job.json"))
        report.unlink(missing_ok=True)
        path.write_text(json.dumps({**job, "report": str(report), "threads": self.threads}), encoding="utf-8")
        added = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": str(self.threads)}
        _bring_to_disk()
        if command[0] == sys.executable:
            added[HUGE_PAGES] = "1"  # as our command line sets it; other programs come as they are
        with log.open("wb") as output:
            environment = {**os.environ, **added}
            done = subprocess.run(
                [*command, str(path)], cwd=ROOT, env=environment, stdout=output, stderr=output, check=False
            )
        if done.returncode or not report.is_file():
            end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
            raise RuntimeError(f"{name}: the run failed ({done.returncode}); its log ends so:\n{end}")
        return Side(**json.loads(report.read_text(encoding="utf-8")))


def _bring_to_disk() -> None:
    """Write what the runs before have left in memory: a side that waits for its own file would wait for that too."""
    if hasattr(os, "sync"):
        os.sync()
