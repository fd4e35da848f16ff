"""name=value arguments of optimizers and schedules, as sd-scripts' users write them."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

_NAME = re.compile(r"(?:^|(?<=\s))([A-Za-z_]\w*)\s*=(?!=)")
_SPACED_COMMA = re.compile(r"\s*,\s*")
_WORDS = {"true": True, "false": False, "none": None}


def parse_arguments(text: str) -> tuple[dict[str, Any], list[str]]:
    """The arguments of a text such as `betas=0.9,0.99 decouple=True`, and what is wrong with it in words.

    Values are Python literals; commas make tuples, and what is no literal is text. Pairs stand apart by white space.
    """
    arguments: dict[str, Any] = {}
    problems: list[str] = []
    stray, pairs = _pairs(text)
    if stray:
        problems.append(f"{stray!r} is no name=value pair: write pairs such as weight_decay=0.01, a space between them")
    for name, value in pairs:
        if not value:
            problems.append(f"{name} has no value: write {name}=value")
        elif name in arguments:
            problems.append(f"{name} is given twice: leave one of them out")
        else:
            arguments[name] = _value(value)
    return arguments, problems


def argument_words(text: str) -> list[str]:
    """The arguments of a text one by one, `name=value` without spaces about commas, as a list in a file has them."""
    return [f"{name}={_SPACED_COMMA.sub(',', value)}" for name, value in _pairs(text)[1]]


def _pairs(text: str) -> tuple[str, list[tuple[str, str]]]:
    """(what stands before the first name, [(name, its value's text)])."""
    starts = list(_NAME.finditer(text))
    if not starts:
        return text.strip(), []
    ends = [*(start.start() for start in starts[1:]), len(text)]
    pairs = [
        (start.group(1), text[start.end() : end].strip().rstrip(",;")) for start, end in zip(starts, ends, strict=True)
    ]
    return text[: starts[0].start()].strip(), pairs


def parse_numbers(text: str) -> list[float] | None:
    """The numbers of a text that has them between commas or white space; None where one is no number."""
    try:
        return [float(word) for word in re.split(r"[,\s]+", text.strip()) if word]
    except ValueError:
        return None


def finite_number(text: str | float) -> float | None:
    """The number of a text, or the number itself; None for anything that is none, or is not finite."""
    try:
        value = float(text)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _value(text: str) -> Any:
    """A literal, a tuple of them, or the text itself."""
    word = text.lower()
    if word in _WORDS:
        return _WORDS[word]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 1 and all(part.lower() in _WORDS for part in parts):
        return tuple(_WORDS[part.lower()] for part in parts)
    return text
