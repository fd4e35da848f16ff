"""`grid`: a network's epochs and weights side by side."""

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
    writable_folder,
)
from lora_ext.protocols import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Network, values of the axes, picture, host, and the file to write."""
    parser.add_argument(
        "--prompt", required=True, metavar="TEXT", help="a tag of the network in it is replaced, otherwise one is added"
    )
    parser.add_argument(
        "--network", metavar="NAME", help="name of the network (default: that of the prompt's only tag)"
    )
    parser.add_argument(
        "--epochs", default="all", metavar="LIST", help='"1-5", "2-10 (+2)", "1, 3, last", "all" (default: all)'
    )
    parser.add_argument(
        "--weights",
        default="0.4-1 (+0.2)",
        metavar="LIST",
        help='"0.4-1.2 (+0.2)", "0.2-1.0 [5]", "0.5, 1" (default: %(default)s)',
    )
    parser.add_argument("--no-none", action="store_true", help="leave out the column without the network")
    add_image_options(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("grid.png"), metavar="FILE", help="PNG to write (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the cells as JSON")
    add_host_options(parser)


def network_name(prompt: str, given: str | None) -> str:
    """The network that the grid is of."""
    from lora_ext.grid.axes import tag_names

    if given:
        return given
    names = tag_names(prompt)
    if len(names) == 1:
        return names[0]
    found = f"the prompt has tags of {', '.join(names)}" if names else "the prompt has no <lora:name:1> tag"
    raise UserError(f"which network? {found}: name one with --network NAME")


def run(options: argparse.Namespace) -> int:
    """Render the grid and save it."""
    from lora_ext.grid.render import epoch_weight_grid
    from lora_ext.grid.values import parse_epochs, parse_numbers

    name = network_name(options.prompt, options.network)
    epochs, weights = parse_epochs(options.epochs), parse_numbers(options.weights)
    if options.out.suffix.lower() != ".png":
        raise UserError(f"--out {options.out}: grids are written as PNG; give a name that ends with .png")
    writable_folder(options.out.parent)
    host = open_host(options)
    grid = epoch_weight_grid(
        host,
        request_of(options, options.prompt),
        name,
        epochs,
        weights,
        host.library,
        include_none=not options.no_none,
        progress=progress_on_terminal("picture"),
    )
    grid.save(options.out)
    if options.json:
        cells = [
            {"column": cell.column, "row": cell.row, "prompt": cell.request.prompt, "seed": cell.request.seed}
            for row in grid.cells
            for cell in row
        ]
        print(json.dumps({"file": str(options.out), "cells": cells}, ensure_ascii=False, indent=2))
    else:
        warn(grid.messages)
        print(options.out)
    return 0
