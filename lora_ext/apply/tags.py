"""The WebUI's tags in prompts: `<lora:name:te:unet:dyn>`, and what we add to them by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.config.arguments import finite_number
from lora_ext.networks.block_weights import BlockWeights, Presets, parse_block_weights
from lora_ext.networks.library import Epoch
from lora_ext.networks.region_mask import RegionMask
from lora_ext.protocols import UserError

_TAG = re.compile(r"<(\w+):([^>]+)>")
_KINDS = ("lora", "lyco")
_STEPS = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")


@dataclass(frozen=True)
class LoraTag:
    """A network and its multipliers for text encoders and U-Net; `unet` None is `te`.

    `dyn` uses the first so many ranks only, None all. `epoch` is the epoch of the name's run, None the file of this
    name. `lbw` are factors by block. The U-Net's part acts after the first `start` sampling steps and until `stop`
    of them are made, None to the end; the text encoders' part acts always. `region` is where in the picture the U-Net's
    part acts, None everywhere; no text says so.
    """

    name: str
    te: float = 1.0
    unet: float | None = None
    dyn: int | None = None
    epoch: Epoch | None = None
    lbw: BlockWeights | None = None
    start: int = 0
    stop: int | None = None
    region: RegionMask | None = None

    @property
    def unet_multiplier(self) -> float:
        """The multiplier for the U-Net."""
        return self.te if self.unet is None else self.unet

    def block_multiplier(self, key: str, architecture: Architecture) -> float:
        """What the multiplier of one module is multiplied by, by its key in files.

        Raises UserError where `lbw` is for another kind of checkpoint.
        """
        return 1.0 if self.lbw is None else self.lbw.multiplier(key, architecture)

    def text(self) -> str:
        """The tag as it stands in a prompt."""
        numbers = f"{self.te:.10g}" if self.unet is None else f"{self.te:.10g}:{self.unet:.10g}"
        return f"<lora:{self.name}:{numbers}{self.named_text()}>"

    def named_text(self) -> str:
        """The tag's named arguments: empty, or each with a colon before it."""
        named: dict[str, object] = {
            "dyn": self.dyn,
            "epoch": self.epoch,
            "lbw": None if self.lbw is None else self.lbw.text,
            "start": self.start or None,
            "stop": self.stop,
        }
        return "".join(f":{key}={value}" for key, value in named.items() if value is not None)


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt without its network tags, the tags, and what is wrong with those that were ignored."""

    text: str
    tags: list[LoraTag] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def parse_tags(prompt: str, presets: Presets | None = None) -> ParsedPrompt:
    """Take the `lora` and `lyco` tags out of a prompt; everything else stays as it is, tags of other kinds too.

    Grammar as in the WebUI: items are split at colons, one with exactly one `=` is named (te, unet, dyn, epoch, lbw,
    start, stop, step; others are ignored), te is 1 where it is not given, and unet is te. `presets` are a person's own
    names for `lbw=`.
    """
    parsed = ParsedPrompt("")

    def take(match: re.Match[str]) -> str:
        if match[1] not in _KINDS:
            return match[0]
        try:
            parsed.tags.append(_parse_items(match[2].split(":"), presets))
        except UserError as error:
            parsed.problems.append(f"{match[0]} is ignored: {error}")
        return ""

    return ParsedPrompt(_TAG.sub(take, prompt), parsed.tags, parsed.problems)


def _parse_items(items: list[str], presets: Presets | None) -> LoraTag:
    """The tag; raises UserError with what is wrong with it."""
    named = dict(item.split("=") for item in items if item.count("=") == 1)
    positional = [item for item in items if item.count("=") != 1]
    if not positional or not positional[0].strip():
        raise UserError("it has no name; write <lora:name:1>")
    given = dict(zip(("te", "unet", "dyn"), positional[1:], strict=False)) | named
    if "lbwe" in given:
        raise UserError("lbwe= is not known here; write weights by block, like lbw=OUTALL")
    values = {key: _number(key, given[key]) for key in ("te", "unet") if key in given}
    start, stop = _steps(given)
    return LoraTag(
        positional[0].strip(),
        values.get("te", 1.0),
        values.get("unet"),
        _dyn(given.get("dyn")),
        _epoch(given.get("epoch")),
        parse_block_weights(given["lbw"], presets) if "lbw" in given else None,
        start,
        stop,
    )


def _number(key: str, text: str) -> float:
    value = finite_number(text)
    if value is None:
        hint = "; weights by block are written lbw=…" if "," in text else ""
        raise UserError(f"{key} = {text!r} is no number; write one like 0.8{hint}")
    return value


def _dyn(text: str | None) -> int | None:
    if text is not None and not (text.strip().isdecimal() and int(text) > 0):
        raise UserError(f"dyn = {text!r} is no rank; write a whole number from 1 on, or leave it out")
    return None if text is None else int(text)


def _epoch(text: str | None) -> Epoch | None:
    word = "" if text is None else text.strip().lower()
    if text is None or word == "last":
        return None if text is None else "last"
    if not (word.isdecimal() and int(word) > 0):
        raise UserError(f"epoch = {text!r} is no epoch; write a whole number from 1 on, or last")
    return int(word)


def _steps(given: Mapping[str, Any]) -> tuple[int, int | None]:
    """(steps before it acts, steps until it stops acting or None) of `start=`, `stop=` or `step=a-b`."""
    first, last = given.get("start"), given.get("stop")
    if "step" in given:
        both = _STEPS.fullmatch(given["step"])
        if both is None:
            raise UserError(f"step = {given['step']!r} is no range of steps; write one like step=5-10")
        if first is not None or last is not None:
            raise UserError("step= stands for start= and stop= together; give either")
        first, last = both.groups()
    start, stop = _count("start", first) or 0, _count("stop", last)
    if stop is not None and stop <= start:
        raise UserError(f"it would act in no step: stop = {stop} has to be above start = {start}")
    return start, stop


def _count(key: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.strip().isdecimal():
        raise UserError(f"{key} = {text!r} is no number of steps; write a whole number like 10")
    return int(text)
