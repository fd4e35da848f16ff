"""The prompts of sample pictures, as sd-scripts writes them.

One a line with options, `a cat --n dog --w 512 --h 768 --d 1 --s 20`; or tables in a .toml file (a `[prompt]` table for
all, a `[[prompt.subset]]` for each); or a list of lines and tables in a .json file.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ext.config.given_path import given_path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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

FILEWORDS = "[filewords]"
"""Stands for a caption of the dataset in a prompt, as in sd_dreambooth."""

_FILE_SUFFIXES = (".txt", ".toml", ".json")
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
_KEYS = {
    "prompt": None, "negative_prompt": "n", "width": "w", "height": "h", "seed": "d", "sample_steps": "s", "scale": "l",
    "sample_sampler": "ss",
}  # fmt: skip
"""Keys of a table, and the options of a line that mean the same."""

_WITHOUT_EFFECT = {"g", "cn", "ctr", "rcfg", "fs"}
_KEYS_WITHOUT_EFFECT = {"guidance_scale", "controlnet_image", "cfg_trunc_ratio", "renorm_cfg", "flow_shift", "enum"}
"""What sd-scripts reads for other kinds of models, and leaves aside with those that are trained here."""


def prompts_file(text: str) -> Path | None:
    """The file that the setting names in place of prompts: a single line that ends in .txt, .toml or .json."""
    line = text.strip()
    is_file = "\n" not in line and line.strip('"').lower().endswith(_FILE_SUFFIXES) and " --" not in line
    return given_path(line) if is_file else None


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


def parse_prompts_file(text: str, suffix: str) -> tuple[list[SamplePrompt], list[str]]:
    """The prompts of a file with this text and suffix (.txt, .toml, .json), and what is wrong with it."""
    try:
        if suffix.lower() == ".toml":
            return _parse_entries(_toml_entries(tomllib.loads(text)))
        if suffix.lower() == ".json":
            entries = json.loads(text)
            if not isinstance(entries, list):
                raise ValueError('a list of prompts is wanted: [{"prompt": …}, …]')
            return _parse_entries(entries)
    except (ValueError, RecursionError) as error:
        return [], [f"sample_prompts: the file cannot be read as {suffix[1:].upper()}: {error}"]
    return parse_sample_prompts(text)


def _toml_entries(document: Mapping[str, Any]) -> list[Any]:
    """A table a prompt: what stands in [prompt] counts for all, and gives way to what a subset says itself."""
    shared = document.get("prompt")
    subsets = shared.get("subset", [{}]) if isinstance(shared, dict) else None
    if not isinstance(shared, dict) or not isinstance(subsets, list):
        raise ValueError("a [prompt] table is wanted, with a [[prompt.subset]] for each prompt")
    common = {key: value for key, value in shared.items() if key != "subset"}
    return [{**common, **subset} if isinstance(subset, dict) else subset for subset in subsets]


def _parse_entries(entries: Sequence[Any]) -> tuple[list[SamplePrompt], list[str]]:
    """The prompts of a file's entries: lines as in a text file, or tables."""
    prompts: list[SamplePrompt] = []
    problems: list[str] = []
    for number, entry in enumerate(entries, 1):
        if isinstance(entry, str):
            prompt, wrong = _parse_line(entry.strip())
        elif isinstance(entry, dict):
            prompt, wrong = _parse_table(entry)
        else:
            prompt, wrong = SamplePrompt(""), [f"{entry!r} is neither a line nor a table"]
        prompts.append(prompt)
        problems += [f"sample_prompts, prompt {number}: {problem}" for problem in wrong]
    return prompts, problems


def _parse_table(table: Mapping[str, Any]) -> tuple[SamplePrompt, list[str]]:
    words = table.get("prompt")
    values: dict[str, Any] = {"prompt": words if isinstance(words, str) else ""}
    problems = [] if isinstance(words, str) and words.strip() else ["there is no prompt in it"]
    for key, value in table.items():
        option = _KEYS.get(key)
        if option is not None:
            problems += _set_option(values, _OPTIONS[option], str(value), f"{key} = {value}")
        elif key not in _KEYS and key not in _KEYS_WITHOUT_EFFECT:
            problems.append(f"{key}: allowed are {', '.join(_KEYS)}")
    return SamplePrompt(**values), problems


def _parse_line(line: str) -> tuple[SamplePrompt, list[str]]:
    first, *options = _OPTION.split(f" {line}")
    values: dict[str, Any] = {"prompt": first.strip()}
    problems = [] if first.strip() else ["there are options, but no prompt before them"]
    for option in options:
        name, _, text = option.partition(" ")
        known = _OPTIONS.get(name.lower())
        if known is not None:
            problems += _set_option(values, known, text.strip(), f"--{name} {text.strip()}")
        elif name.lower() not in _WITHOUT_EFFECT:
            problems.append(f"--{name}: allowed are {', '.join(f'--{each}' for each in _OPTIONS)}")
    return SamplePrompt(**values), problems


def _set_option(values: dict[str, Any], option: _Option, text: str, given: str) -> list[str]:
    """Read an option's text into `values`, or say why it does not fit."""
    try:
        value = option.read(text)
    except ValueError:
        value = None
    if value is None or not option.fits(value):
        return [f"{given}: allowed is {option.allowed}"]
    values[option.field] = value
    return []
