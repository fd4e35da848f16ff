"""The prompts of sample pictures, one a line with sd-scripts' options: `a cat --n dog --w 512 --h 768 --d 1 --s 20`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLERS = {
    "ddim": "DDIM",
    "pndm": "PLMS",
    "lms": "LMS",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpm_2": "DPM2",
    "dpm_2_a": "DPM2 a",
    "dpmsolver": "DPM++ 2M",
    "dpmsolver++": "DPM++ 2M",
    "dpmsingle": "DPM++ 2S a",
}
"""sd-scripts' names of samplers, which may have `k_` in front, and the WebUI's names of the same or the nearest."""

_FILE_SUFFIXES = (".txt",)
_OPTION = re.compile(r"\s--(?=[A-Za-z]+(?:\s|$))")


@dataclass(frozen=True)
class SamplePrompt:
    """One line. What is None is the run's: its resolution, seed and sampler; `width`, `height` in pixels."""

    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    steps: int = 20
    cfg_scale: float = 7.0
    sampler: str | None = None


@dataclass(frozen=True)
class _Option:
    """An option of a line: the field that it sets, how its value is read, and what is allowed."""

    field: str
    read: Callable[[str], Any]
    allowed: str
    fits: Callable[[Any], bool] = lambda value: True


def sampler_name(name: str) -> str:
    """The WebUI's name for a sampler's name of either kind."""
    return SAMPLERS.get(name.strip().lower().removeprefix("k_"), name.strip())


def _is_side(pixels: int) -> bool:
    return 64 <= pixels <= 4096 and pixels % 8 == 0


_SIDE = "a multiple of 8 from 64 to 4096"
_OPTIONS = {
    "n": _Option("negative_prompt", str, "text"),
    "w": _Option("width", int, _SIDE, _is_side),
    "h": _Option("height", int, _SIDE, _is_side),
    "d": _Option("seed", int, "a whole number from 0 to 4294967295", lambda seed: 0 <= seed < 2**32),
    "s": _Option("steps", int, "a whole number from 1 to 500", lambda steps: 1 <= steps <= 500),
    "l": _Option("cfg_scale", float, "a number from 1 to 100", lambda scale: 1 <= scale <= 100),
    "ss": _Option("sampler", sampler_name, "the name of a sampler", bool),
}


def prompts_file(text: str) -> Path | None:
    """The file that the setting names in place of prompts: a single line that ends in .txt."""
    line = text.strip()
    is_file = "\n" not in line and line.lower().endswith(_FILE_SUFFIXES) and " --" not in line
    return Path(line).expanduser() if is_file else None


def parse_sample_prompts(text: str) -> tuple[list[SamplePrompt], list[str]]:
    """The prompts of a text, and what is wrong with it; empty lines and lines that begin with # are left out."""
    prompts: list[SamplePrompt] = []
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            prompt, wrong = _parse_line(line.strip())
            prompts.append(prompt)
            problems += [f"sample_prompts, line {number}: {problem}" for problem in wrong]
    return prompts, problems


def _parse_line(line: str) -> tuple[SamplePrompt, list[str]]:
    first, *options = _OPTION.split(f" {line}")
    values: dict[str, Any] = {"prompt": first.strip()}
    problems = [] if first.strip() else ["there are options, but no prompt before them"]
    for option in options:
        name, _, text = option.partition(" ")
        known = _OPTIONS.get(name.lower())
        if known is None:
            problems.append(f"--{name}: allowed are {', '.join(f'--{each}' for each in _OPTIONS)}")
            continue
        try:
            value = known.read(text.strip())
        except ValueError:
            value = None
        if value is None or not known.fits(value):
            problems.append(f"--{name} {text.strip()}: allowed is {known.allowed}")
        else:
            values[known.field] = value
    return SamplePrompt(**values), problems
