"""The file tools, one command each: options, help and checks come from their declared settings."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import signal
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ext.commands.options import default_home, warn
from lora_ext.config.fields import Setting
from lora_ext.jobs.remaining import duration, seconds_left
from lora_ext.protocols import Control, Progress, UserError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lora_ext.checkpoint.text_part import TextPart
    from lora_ext.merge.tools import Tool
    from lora_ext.merge.work import ToolReport, Work

EXIT_DAMAGED = 1
POSITIONAL = ("file", "files")
"""Names of settings that stand on a command line without their name."""

_SECONDS_BETWEEN = 0.2


class ToolCommand:
    """The command of one file tool."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def tool(self) -> Tool:
        """The tool itself; its module is imported now."""
        from lora_ext.merge.tools import tool_named

        return tool_named(self.name)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the tool's settings, and what all tools have."""
        tool = self.tool
        parser.description = tool.summary
        declared = tool.declared()
        for each in declared:
            add_setting(parser, each)
        group = parser.add_argument_group("in general")
        if tool.preview is not None:
            group.add_argument("--preview", action="store_true", help="tell what would come of it, and write nothing")
        group.add_argument("--json", action="store_true", help="print the report as JSON")
        if "report" not in {each.name for each in declared}:
            group.add_argument("--report", action="store_true", help="list every module: ranks, and what is kept of it")
        group.add_argument(
            "--home", type=Path, default=default_home(), metavar="DIR",
            help="names stand for networks in its models/Lora, and checkpoints in its models/Stable-diffusion "
            "(default: %(default)s)",
        )  # fmt: skip

    def run(self, options: argparse.Namespace) -> int:
        """Do the tool's work, or preview it; 1 where a file turned out to be damaged."""
        from lora_ext.merge.tools import make_settings

        tool = self.tool
        gc.freeze()  # looking through all that torch has imported takes a tenth of a second each time
        settings = make_settings(tool, given_values(options, tool.declared()))
        with cancelled_by_signals(Control()) as control:
            work = work_of(options.home, getattr(settings, "device", "cpu"), control)
            previewing = tool.preview is not None and options.preview
            report = (tool.preview or tool.run)(settings, work) if previewing else tool.run(settings, work)
        if options.json:
            print(json.dumps(report.as_json(), ensure_ascii=False, indent=2))
        else:
            warn(list(report.warnings))
            print(report_text(report, bool(options.report), previewing))
        return EXIT_DAMAGED if report.verdict == "damaged" else 0


def command_of(name: str) -> ToolCommand:
    """The command of a tool by its name."""
    return ToolCommand(name)


def add_setting(parser: argparse.ArgumentParser, declared: Setting) -> None:
    """One setting as an option: a flag, a value, or as many values as one likes where it has several lines.

    `file` and `files` have no name in front. Values stay text: the declaration reads them.
    """
    allowed = _allowed(declared)
    words = (declared.help + (f" ({allowed})" if allowed else "")).replace("%", "%%")
    option = "--" + declared.name.replace("_", "-")
    if declared.name in POSITIONAL:
        count = "+" if declared.name == "files" else None
        parser.add_argument(declared.name, metavar="FILE", help=words, nargs=count)
    elif declared.type is bool:
        flag: Any = argparse.BooleanOptionalAction if declared.default is True else "store_true"
        parser.add_argument(option, default=argparse.SUPPRESS, action=flag, help=declared.help.replace("%", "%%"))
    else:
        several: Any = {"action": "extend", "nargs": "+"} if declared.lines > 1 else {}
        parser.add_argument(
            option, dest=declared.name, metavar=_metavar(declared), default=argparse.SUPPRESS, help=words, **several
        )


def _allowed(declared: Setting) -> str:
    """What may stand there, that it may be repeated, and what it is where nothing is said."""
    parts = [] if declared.kind else [declared.allowed()]
    if declared.lines > 1 and declared.name not in POSITIONAL:
        parts.append("may be repeated")
    if declared.default not in (None, ""):
        parts.append(f"default: {declared.default}")
    return "; ".join(parts)


def _metavar(declared: Setting) -> str:
    if declared.kind:
        return {"network": "NETWORK", "networks": "NETWORK"}.get(declared.kind, "FILE")
    return {int: "N", float: "X", str: "TEXT"}[declared.type]


def given_values(options: argparse.Namespace, declared: tuple[Setting, ...]) -> dict[str, Any]:
    """What the command line says of a tool's settings; the values of a repeated option are joined, one a line."""
    given = {each.name: getattr(options, each.name) for each in declared if hasattr(options, each.name)}
    return {name: "\n".join(value) if isinstance(value, list) else value for name, value in given.items()}


def work_of(home: Path, device: str, control: Control) -> Work:
    """What a tool is given: the device, names of networks and checkpoints in `home`, progress on the terminal."""
    from lora_ext.checkpoint.checkpoint_files import find_checkpoint
    from lora_ext.checkpoint.devices import choose_device
    from lora_ext.host.text_parts import stored_text
    from lora_ext.merge.work import Work
    from lora_ext.networks.library import NetworkLibrary

    library = NetworkLibrary([home / "models" / "Lora"])

    def find_network(text: str) -> Path | None:
        path = Path(text)
        return path if path.is_file() else library.find_file(text)

    def find_model(text: str) -> Path | None:
        path = Path(text)
        return path if path.is_file() else find_checkpoint(text, [home / "models" / "Stable-diffusion"])

    def open_text(text: str) -> AbstractContextManager[TextPart]:
        if not text:
            raise UserError("no checkpoint is given: name the file of the one that the network is for (--checkpoint)")
        return stored_text(work.checkpoint(text), chosen)

    chosen = choose_device(device)
    maps_files = sys.platform != "win32"  # there a mapped file cannot be replaced, and nobody would know why
    work = Work(chosen, control, progress_with_time(), find_network, find_model, open_text, maps_files)
    return work


def progress_with_time() -> Progress | None:
    """A progress callback that rewrites one line, with the time left; None where standard error is no terminal."""
    if not sys.stderr.isatty():
        return None
    started, shown = time.monotonic(), [0.0]

    def show(done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - shown[0] < _SECONDS_BETWEEN:
            return
        shown[0] = now
        left = seconds_left(now - started, done, total)
        rest = f", {duration(left)} left" if left is not None else ""
        line = f"{done / total:4.0%}{rest}" if total else ""
        print(f"\r{line:<40}", end="\n" if done >= total else "", file=sys.stderr, flush=True)

    return show


@contextlib.contextmanager
def cancelled_by_signals(control: Control) -> Iterator[Control]:
    """Ctrl-C and a polite kill end the work between two of its parts; a second one ends it at once."""

    def handle(number: int, frame: types.FrameType | None) -> None:
        if control.stopping:
            raise KeyboardInterrupt
        control.cancel()
        print("\nStopping; nothing is left half written.", file=sys.stderr, flush=True)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, handle) for each in signals}
    try:
        yield control
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def report_text(report: ToolReport, with_modules: bool = False, preview: bool = False) -> str:
    """A report as a person reads it: title, verdict, facts, the modules where asked for, and the files."""
    facts: dict[str, str] = {**({"verdict": report.verdict} if report.verdict else {}), **report.facts}
    width = max(map(len, facts), default=0) + 2
    lines = [report.title, *(f"  {name:<{width}}{_indented(text, width)}" for name, text in facts.items())]
    if with_modules and report.modules:
        lines += ["", *_module_table(report)]
    word = "would write" if preview else "wrote"
    lines += [f"{word} {each.path} ({each.shown_size})" for each in report.files]
    return "\n".join(lines)


def _indented(text: str, width: int) -> str:
    return text.replace("\n", "\n" + " " * (width + 2))


def _module_table(report: ToolReport) -> list[str]:
    """A line for each module: ranks before and after, and the share of ‖ΔW‖² that is kept."""
    width = max(len(each.key) for each in report.modules)
    lines = [f"{'module':<{width}}  before   after    kept"]
    for each in report.modules:
        kept = "" if each.kept is None else f"{each.kept:.3%}"
        lines.append(f"{each.key:<{width}}  {_number(each.rank_before):>6}  {_number(each.rank_after):>6}  {kept:>8}")
    return lines


def _number(value: int | None) -> str:
    return "–" if value is None else str(value)
