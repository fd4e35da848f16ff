"""One of our tools on one job, in a process of its own: `python -m benchmarks.file_tools.ours JOB.json`."""

from __future__ import annotations

import gc
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.file_tools.timed import timed
from lora_ext.commands.file_tools import work_of
from lora_ext.merge.tools import MODULES, make_settings
from lora_ext.protocols import Control


def main(path: Path) -> None:
    """Run the job's tool with its settings; times and memory go into its report.

    Of the settings' parsing and the run alone: the tool's module and everything that it imports are there before.
    """
    job: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    tool = importlib.import_module(MODULES[job["tool"]]).TOOL
    torch.linalg.svd(torch.eye(2))  # loads what the library loads late
    gc.freeze()  # as our command line does
    work = work_of(path.parent, job["device"], Control())
    report = timed(lambda: tool.run(make_settings(tool, job["settings"]), work))
    Path(job["report"]).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
