"""`ui`: the app in the browser."""

from __future__ import annotations

import argparse

from lora_ext.commands.options import add_host_options, open_host, whole_number, writable_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Host and port."""
    add_host_options(parser)
    parser.add_argument(
        "--port", type=whole_number(1, 65535), default=7861, help="on this machine (default: %(default)s)"
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address only")


def run(options: argparse.Namespace) -> int:
    """Serve the app until it is interrupted."""
    from lora_ext.jobs.registry import RunRegistry
    from lora_ext.jobs.runner import JobRunner
    from lora_ext.ui.standalone import launch

    writable_folder(options.home)
    host = open_host(options)
    runner = JobRunner(host, RunRegistry(host.folders().runs))
    launch(host, runner, port=options.port, open_browser=not options.no_browser)
    return 0
