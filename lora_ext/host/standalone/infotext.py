"""The WebUI's infotext: what a picture was made with, as text in its PNG chunk `parameters`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

NEGATIVE = "Negative prompt:"
FEWEST_PARAMETERS = 3
"""A last line with fewer entries is part of the prompt."""

_PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


@dataclass(frozen=True)
class Infotext:
    """A picture's prompt, negative prompt and parameters, in order."""

    prompt: str
    negative_prompt: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)


def quote(value: object) -> str:
    """`value` as it stands in the parameters' line: in JSON's quotes where it holds a comma, a colon or a new line."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def _unquote(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def format_infotext(infotext: Infotext) -> str:
    """Prompt, negative prompt where there is one, and one line of parameters."""
    line = ", ".join(f"{key}: {quote(value)}" for key, value in infotext.parameters.items())
    negative = f"\n{NEGATIVE} {infotext.negative_prompt}" if infotext.negative_prompt else ""
    return f"{infotext.prompt}{negative}\n{line}".strip()


def parse_infotext(text: str) -> Infotext:
    """The parts of an infotext, of ours or of the WebUI's; text that has no parameters is all prompt."""
    *lines, last = text.strip().split("\n")
    found = _PARAMETER.findall(last)
    if len(found) < FEWEST_PARAMETERS:
        lines, found = [*lines, last], []
    prompt: list[str] = []
    negative: list[str] = []
    current = prompt
    for line in (line.strip() for line in lines):
        if line.startswith(NEGATIVE):
            current = negative
            line = line.removeprefix(NEGATIVE).strip()
        current.append(line)
    return Infotext("\n".join(prompt), "\n".join(negative), {key: _unquote(value) for key, value in found})
