"""The command line: finds the command, runs it, and tells a person's mistakes in one message without a traceback."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from lora_ext import __version__
from lora_ext.protocols import Cancelled, UserError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

COMMANDS = {
    "demo": ("lora_ext.commands.demo", "train on the demo pictures and draw the epoch x weight grid"),
    "ui": ("lora_ext.commands.ui", "open the app in the browser"),
    "train": ("lora_ext.commands.train", "train a network on your own pictures"),
    "import": ("lora_ext.commands.import_settings", "turn settings of sd-scripts, kohya_ss, … into a settings file"),
    "generate": ("lora_ext.commands.generate", "render pictures, with <lora:name:weight> in the prompt"),
    "grid": ("lora_ext.commands.grid", "compare a network's epochs and weights in one picture"),
    "export-demo": ("lora_ext.commands.export_demo", "put the demo checkpoint into a WebUI's folders"),
    "docs": ("lora_ext.commands.docs", "write docs/settings.md from the declared settings"),
    "bench": ("lora_ext.commands.develop", "measure training, rendering and switching of networks"),
    "test": ("lora_ext.commands.develop", "run the project's tests; pytest options may follow"),
    "lint": ("lora_ext.commands.develop", "run the project's checks: ruff and mypy"),
}
"""Each command's module and what it does. The modules are imported on demand, their heavy imports when they run."""

FILE_TOOLS: dict[str, str] = {
    "resize": "bring networks to a lower rank",
    "merge-networks": "make one network of several with weights",
    "merge-checkpoint": "add networks to a checkpoint's weights",
    "extract": "make a network of the difference of two checkpoints",
    "check": "tell whether networks are healthy, doubtful or damaged, and why",
    "repair": "write a network without what is damaged or does nothing",
    "inspect": "tell what a network or checkpoint file holds",
    "interrogate": "tell which words a network moves most in the text encoder",
    "metadata": "show or change what a network says of itself",
    "convert": "write a network in other programs' words, or in another precision",
    "dylora-split": "write the ranks of a DyLoRA as networks of their own",
}
"""The file tools, as `--help` lists them; what else is to say of one stands in its module (merge/tools.py)."""

COMMANDS |= {name: ("lora_ext.commands.file_tools", summary) for name, summary in FILE_TOOLS.items()}

PASSES_ARGUMENTS_ON = ("bench", "test", "lint")
"""Commands whose options belong to the program that they start."""

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""torch's switch, read once with its first tensor: on Linux it asks for large tensors in pages of 2 MB. A training step
on the CPU takes and frees gigabytes, and the system clears them page by page; by 4 kB this is a third of the step."""


class Command(Protocol):
    """What a module of `lora_ext.commands` provides."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's options."""
        ...

    def run(self, options: argparse.Namespace) -> int:
        """Do the work and return the exit code; raises UserError for what a person can put right."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (sys.argv's by default) and return its exit code: 2 for bad input, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault(HUGE_PAGES, "1")  # torch is not imported yet
    try:
        if arguments and arguments[0] in PASSES_ARGUMENTS_ON:
            develop = importlib.import_module(COMMANDS[arguments[0]][0])
            return int(develop.run(arguments[0], arguments[1:]))
        options = make_parser(arguments[0] if arguments else "").parse_args(arguments)
        return _command(options.command).run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Cancelled:
        print("Stopped.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED


def make_parser(command: str = "") -> argparse.ArgumentParser:
    """The parser of all commands; only the options of `command` are filled in, which keeps starting quick."""
    parser = argparse.ArgumentParser(
        prog="run.py", description="LoRA Workshop: train, use and compare LoRA networks.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"LoRA Workshop {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, summary) in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == command:
            _command(name).add_arguments(sub)
    return parser


def _command(name: str) -> Command:
    """A command by its name; the file tools share one module."""
    module: Any = importlib.import_module(COMMANDS[name][0])
    command: Command = module.command_of(name) if name in FILE_TOOLS else module
    return command
