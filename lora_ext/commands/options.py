"""Options that several commands share, and what is made of them: the host, the settings, a folder to write to."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ext.commands.import_settings import imported_settings
from lora_ext.config.presets import compose, preset_named
from lora_ext.config.toml_files import read_values
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.protocols import ConfigError, Control, GenerateRequest, Progress, UserError

if TYPE_CHECKING:
    from lora_ext.host.standalone.host import StandaloneHost

DEMO_SIZE = 64
"""Pixels a side that the demo checkpoint was trained for."""


def add_host_options(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint, which folders, which device."""
    group = parser.add_argument_group("checkpoint and folders")
    group.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="SD1 checkpoint (default: the demo checkpoint that comes along)"
    )
    group.add_argument(
        "--home",
        type=Path,
        default=default_home(),
        metavar="DIR",
        help="where networks (models/Lora), runs and images are kept (default: %(default)s)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps … (default: %(default)s)")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "float16", "bfloat16"),
        help="precision of the checkpoint's weights (default: float32 on a CPU, half of it on a GPU)",
    )


def default_home() -> Path:
    """`outputs` beside run.py in a copy of the repository, else in the present folder."""
    sources = Path(__file__).resolve().parents[2]
    return (sources if (sources / "run.py").is_file() else Path.cwd()) / "outputs"


def open_host(options: argparse.Namespace) -> StandaloneHost:
    """The standalone host on the checkpoint that the options name."""
    from lora_ext.demo.assets import demo_checkpoint_path
    from lora_ext.host.standalone.host import StandaloneHost

    checkpoint = options.checkpoint or demo_checkpoint_path()
    return StandaloneHost(checkpoint, options.home, device=options.device, dtype=options.dtype)


def add_settings_options(parser: argparse.ArgumentParser) -> None:
    """Presets, a settings file or one of another trainer over them, and single settings over that."""
    parser.add_argument(
        "--preset", action="append", default=[], metavar="NAME", help="settings that come along; may be repeated"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", type=Path, metavar="FILE", help="settings from a TOML file")
    source.add_argument(
        "--import",
        dest="import_file",
        type=Path,
        metavar="FILE",
        help="settings of sd-scripts, kohya_ss, … (see the import command)",
    )
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one setting, over those of the file; may be repeated",
    )


def settings_of(options: argparse.Namespace) -> TrainConfig:
    """The settings of a command line. Raises ConfigError with every problem of the file and of `--set` at once."""
    problems: list[str] = []
    base = make_config(compose(map(preset_named, options.preset)), whole=False)
    values: dict[str, Any] = {}
    try:
        if options.config:
            values = read_values(options.config)
        elif options.import_file:
            base = imported_settings(options, base).config
    except ConfigError as error:
        problems += error.problems
    for assignment in options.assignments:
        name, sign, value = assignment.partition("=")
        if not sign:
            problems.append(f"--set {assignment}: write it as NAME=VALUE, for example --set unet_lr=1e-4")
        values[name.strip()] = value.strip()
    try:
        config = make_config({name: value for name, value in values.items() if name}, base)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return config


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """What a picture is made of, apart from its prompt."""
    group = parser.add_argument_group("picture")
    group.add_argument("--negative", default="", metavar="TEXT", help="what the picture should not show")
    side = whole_number(8, 4096, multiple_of=8)
    size_help = f"pixels, a multiple of 8 (default: 512, {DEMO_SIZE} with the demo checkpoint)"
    group.add_argument("--width", type=side, metavar="PX", help=size_help)
    group.add_argument("--height", type=side, metavar="PX", help=size_help)
    group.add_argument("--steps", type=whole_number(1, 1000), default=20, help="sampling steps (default: %(default)s)")
    group.add_argument("--cfg-scale", type=_finite, default=7.0, help="how closely the prompt is kept to (default: 7)")
    group.add_argument("--sampler", default="Euler a", help="Euler, Euler a, DDIM, DPM++ 2M, … (default: %(default)s)")
    group.add_argument(
        "--seed", type=whole_number(-1, 2**32 - 1), default=-1, help="-1 draws one (default: %(default)s)"
    )
    group.add_argument("--clip-skip", type=whole_number(1, 12), default=1, help="1 is the last layer (default: 1)")


def request_of(options: argparse.Namespace, prompt: str, batch_size: int = 1) -> GenerateRequest:
    """The request for pictures that a command line describes."""
    side = 512 if options.checkpoint else DEMO_SIZE
    return GenerateRequest(
        prompt=prompt,
        negative_prompt=options.negative,
        width=options.width or side,
        height=options.height or side,
        steps=options.steps,
        cfg_scale=options.cfg_scale,
        sampler=options.sampler,
        seed=options.seed,
        batch_size=batch_size,
        clip_skip=options.clip_skip,
    )


def whole_number(minimum: int, maximum: int, multiple_of: int = 1) -> Callable[[str], int]:
    """A reader of whole numbers in a range for argparse, which shows its message with the option's name."""

    def read(text: str) -> int:
        if text.lstrip("-").isdigit() and minimum <= int(text) <= maximum and int(text) % multiple_of == 0:
            return int(text)
        multiples = f", a multiple of {multiple_of}" if multiple_of > 1 else ""
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is a whole number from {minimum} to {maximum}{multiples}")

    return read


def _finite(text: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(float(text)):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}: allowed is a number")


def writable_folder(folder: Path) -> Path:
    """The folder, made where it is missing. Raises UserError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("no permission")
        return folder
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{folder}: cannot be written to ({reason}): choose another folder, or free this one"
        ) from error


@contextlib.contextmanager
def stop_on_signals(control: Control) -> Iterator[None]:
    """Ctrl-C and a polite kill stop the run and keep what is trained; a second one interrupts at once."""

    def handle(number: int, frame: types.FrameType | None) -> None:
        if control.stopping:
            raise KeyboardInterrupt
        control.stop()
        print("\nStopping after this step, keeping what is trained; once more aborts.", file=sys.stderr, flush=True)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, handle) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def progress_on_terminal(what: str) -> Progress | None:
    """A progress callback that rewrites one line; None where standard error is no terminal."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        end = "\n" if done >= total else ""
        print(f"\r{what} {done}/{total} ", end=end, file=sys.stderr, flush=True)

    return show


def warn(messages: tuple[str, ...] | list[str]) -> None:
    """Messages that came with a result, on standard error, each once."""
    for message in dict.fromkeys(messages):
        print(f"warning: {message}", file=sys.stderr)
