"""`generate`: pictures from a prompt."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lora_ext.commands.options import (
    add_host_options,
    add_image_options,
    open_host,
    progress_on_terminal,
    request_of,
    warn,
    whole_number,
    writable_folder,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Prompt, picture, host, and where the files go."""
    parser.add_argument(
        "--prompt", required=True, metavar="TEXT", help="may hold <lora:name:weight> tags and (emphasis:1.2)"
    )
    add_image_options(parser)
    parser.add_argument("--batch", type=whole_number(1, 64), default=1, metavar="N", help="pictures, seeds counting up")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the PNGs go (default: images in --home)")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")
    add_host_options(parser)


def run(options: argparse.Namespace) -> int:
    """Render and save; what is wrong with tags is told as warnings, and the pictures are made without them."""
    from lora_ext.host.standalone.host import save_image

    folder = writable_folder(options.out or options.home / "images")
    host = open_host(options)
    request = request_of(options, options.prompt, options.batch)
    pictures = host.generate(request, progress_on_terminal("sampling step"))
    paths = [save_image(picture, folder) for picture in pictures]
    messages = [message for picture in pictures for message in picture.messages]
    if options.json:
        made = [
            {"file": str(path), "seed": picture.seed, "infotext": picture.infotext}
            for path, picture in zip(paths, pictures, strict=True)
        ]
        print(json.dumps({"images": made, "messages": list(dict.fromkeys(messages))}, ensure_ascii=False, indent=2))
    else:
        warn(messages)
        print("\n".join(str(path) for path in paths))
    return 0
