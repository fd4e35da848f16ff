"""`demo`: the whole line on the demo checkpoint and pictures, with proof that it worked."""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_ext.commands.options import stop_on_signals, whole_number, writable_folder
from lora_ext.protocols import Control


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to, and whether the app is opened afterwards."""
    parser.add_argument("--out", type=Path, default=Path("demo-output"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--no-ui", action="store_true", help="do not open the app on the result")
    parser.add_argument("--port", type=whole_number(1, 65535), default=7861, help="of the app (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Train, draw the grid, judge, and open the app on it."""
    from lora_ext.demo.run import run_demo

    out = writable_folder(options.out)
    control = Control()
    with stop_on_signals(control):
        report = run_demo(out, control)
    print("\n".join(report.lines()))
    if options.no_ui or control.stopping:
        return 0
    from lora_ext.demo.run import open_demo_host
    from lora_ext.jobs.registry import RunRegistry
    from lora_ext.jobs.runner import JobRunner
    from lora_ext.ui.standalone import launch

    host = open_demo_host(out)
    launch(host, JobRunner(host, RunRegistry(host.folders().runs)), port=options.port, open_browser=True)
    return 0
