"""The WebUI's tags in prompts: `<lora:name:te:unet:dyn>`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

_TAG = re.compile(r"<(\w+):([^>]+)>")
_KINDS = ("lora", "lyco")


@dataclass(frozen=True)
class LoraTag:
    """A network and its multipliers for text encoders and U-Net; `unet` None is `te`.

    `dyn` uses the first so many ranks only, None all.
    """

    name: str
    te: float = 1.0
    unet: float | None = None
    dyn: int | None = None

    @property
    def unet_multiplier(self) -> float:
        """The multiplier for the U-Net."""
        return self.te if self.unet is None else self.unet

    def text(self) -> str:
        """The tag as it stands in a prompt."""
        numbers = f"{self.te:.10g}" if self.unet is None else f"{self.te:.10g}:{self.unet:.10g}"
        return f"<lora:{self.name}:{numbers}>" if self.dyn is None else f"<lora:{self.name}:{numbers}:dyn={self.dyn}>"


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt without its network tags, the tags, and what is wrong with those that were ignored."""

    text: str
    tags: list[LoraTag] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def parse_tags(prompt: str) -> ParsedPrompt:
    """Take the `lora` and `lyco` tags out of a prompt; everything else stays as it is, tags of other kinds too.

    Grammar as in the WebUI: items are split at colons, one with exactly one `=` is named (te, unet, dyn; others are
    ignored), te is 1 where it is not given, and unet is te.
    """
    parsed = ParsedPrompt("")

    def take(match: re.Match[str]) -> str:
        if match[1] not in _KINDS:
            return match[0]
        tag = _parse_items(match[2].split(":"))
        if isinstance(tag, LoraTag):
            parsed.tags.append(tag)
        else:
            parsed.problems.append(f"{match[0]} is ignored: {tag}")
        return ""

    return ParsedPrompt(_TAG.sub(take, prompt), parsed.tags, parsed.problems)


def _parse_items(items: list[str]) -> LoraTag | str:
    """The tag, or what is wrong with it."""
    named = dict(item.split("=") for item in items if item.count("=") == 1)
    positional = [item for item in items if item.count("=") != 1]
    if not positional or not positional[0].strip():
        return "it has no name; write <lora:name:1>"
    given = dict(zip(("te", "unet", "dyn"), positional[1:], strict=False)) | named
    values: dict[str, float] = {}
    for key in ("te", "unet"):
        if key in given:
            value = _number(given[key])
            if value is None:
                return f"{key} = {given[key]!r} is no number; write one like 0.8"
            values[key] = value
    dyn = given.get("dyn")
    if dyn is not None and not (dyn.strip().isdecimal() and int(dyn) > 0):
        return f"dyn = {dyn!r} is no rank; write a whole number from 1 on, or leave it out"
    return LoraTag(positional[0].strip(), values.get("te", 1.0), values.get("unet"), None if dyn is None else int(dyn))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
