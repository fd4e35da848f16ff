"""`export-demo`: the demo checkpoint for a WebUI."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The WebUI's folder."""
    parser.add_argument("webui_dir", type=Path, metavar="WEBUI_DIR", help="the folder that holds webui.py")
    parser.epilog = (
        "Writes models/Stable-diffusion/lora-workshop-demo.safetensors with its YAML, and a folder with the text\n"
        "encoder's configuration and vocabulary, so that the WebUI loads it without a download. The YAML holds that\n"
        "folder's place: export again after the WebUI was moved."
    )


def run(options: argparse.Namespace) -> int:
    """Write the files and name them."""
    from lora_ext.demo.webui_export import export_demo

    files = export_demo(options.webui_dir)
    print("Written:", *files, sep="\n  ")
    print("Choose lora-workshop-demo in the WebUI's checkpoint list; pictures are best at 64 to 128 px, prompts like")
    print('"a red circle on a blue background".')
    return 0
