"""Strengths by block: `lbw=` in a tag, in the lists and preset names of the extension "LoRA Block Weight"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.config.arguments import finite_number
from lora_ext.networks.blocks import block_index
from lora_ext.protocols import UserError

BASE = "BASE"
"""The text encoders' place in a list."""

SD_BLOCKS = (BASE, *(f"IN{n:02}" for n in range(12)), "MID", *(f"OUT{n:02}" for n in range(12)))
SDXL_BLOCKS = (BASE, *(f"IN{n:02}" for n in range(9)), "MID", *(f"OUT{n:02}" for n in range(9)))

_LISTS: dict[int, tuple[str, tuple[str, ...]]] = {
    26: ("SD", SD_BLOCKS),
    17: ("SD", (BASE, *(f"IN{n:02}" for n in (1, 2, 4, 5, 7, 8)), "MID", *(f"OUT{n:02}" for n in range(3, 12)))),
    20: ("SDXL", SDXL_BLOCKS),
    12: ("SDXL", (BASE, *(f"IN{n:02}" for n in (4, 5, 7, 8)), "MID", *(f"OUT{n:02}" for n in range(6)))),
}
"""Numbers in a list → what kind of checkpoint it is for, and the blocks in its order; those that it lacks are 0."""

_FLUX_COUNT = 61
_ALLOWED = "17 or 26 for SD1 and SD2, 12 or 20 for SDXL"

_PARTS: dict[str, tuple[str, str]] = {
    "INS": ("IN00-IN04", "IN00-IN05"),
    "IND": ("IN05-IN11", "IN06-IN08"),
    "INALL": ("IN00-IN11", "IN00-IN08"),
    "MIDD": ("IN05-OUT06", "IN06-OUT02"),
    "OUTD": ("OUT00-OUT06", "OUT00-OUT02"),
    "OUTS": ("OUT07-OUT11", "OUT03-OUT08"),
    "OUTALL": ("OUT00-OUT11", "OUT00-OUT08"),
}
"""Preset → its blocks, first to last, of SD1 / SD2 and of SDXL; it has the text encoders too."""

Presets = Mapping[str, Sequence[str]]
"""A person's own presets: name → its lists, one for each kind of checkpoint that it is for."""


@dataclass(frozen=True)
class BlockWeights:
    """What a network's multiplier is multiplied by, block by block: 26 numbers for SD1 and SD2, 20 for SDXL.

    None where it is not for that kind of checkpoint. `text` is how a tag names it.
    """

    text: str = field(compare=False)
    sd: tuple[float, ...] | None
    sdxl: tuple[float, ...] | None

    def numbers(self, architecture: Architecture) -> tuple[float, ...]:
        """The factors for a kind of checkpoint; UserError where these are for another kind."""
        numbers = self.sdxl if architecture == "SDXL" else self.sd
        if numbers is None:
            count = "12 or 20" if architecture == "SDXL" else "17 or 26"
            raise UserError(f"lbw={self.text} is not for {architecture} checkpoints: those take {count} numbers")
        return numbers

    def multiplier(self, key: str, architecture: Architecture) -> float:
        """The factor of a module by its key in files; 1 for what belongs to no block (time embedding, last layer).

        Raises UserError where the weights are for another kind of checkpoint.
        """
        numbers, block = self.numbers(architecture), block_name(key, architecture)
        blocks = SDXL_BLOCKS if architecture == "SDXL" else SD_BLOCKS
        return 1.0 if block is None else numbers[blocks.index(block)]


def block_name(key: str, architecture: Architecture) -> str | None:
    """The block of a module by its key in files: BASE for text encoders, IN00 …, MID, OUT00 …; None without a block."""
    if key.startswith("lora_te"):
        return BASE
    if key.startswith(("lora_unet_conv_in", "lora_unet_input_blocks_0_")):
        return "IN00"
    index = block_index(key, architecture)
    if index is None:
        return None
    if architecture != "SDXL":
        return SD_BLOCKS[index + 1]
    if index < 10:  # 1 … 9 are the blocks on the way down
        return f"IN{index - 1:02}"
    return "MID" if index < 13 else f"OUT{index - 13:02}"


def parse_block_weights(text: str, presets: Presets | None = None) -> BlockWeights:
    """The weights that `lbw=text` asks for: a person's own preset, one of ours, or a list of numbers with commas.

    Raises UserError where it is none of them.
    """
    text = text.strip()
    own = presets or {}
    if text in own:
        lists = [_parse_list(each, f"the preset {text}") for each in own[text]]
        sd = next((each.sd for each in lists if each.sd is not None), None)
        sdxl = next((each.sdxl for each in lists if each.sdxl is not None), None)
        return BlockWeights(text, sd, sdxl)
    ours = _builtin(text)
    if ours is not None:
        return ours
    if "," not in text:
        known = ", ".join(preset_names(presets))
        raise UserError(f"lbw = {text!r} is no preset; there are {known}. Or give a list of numbers: {_ALLOWED}")
    return _parse_list(text, "lbw")


def preset_names(presets: Presets | None = None) -> list[str]:
    """Every name that `lbw=` knows: ours, and a person's own."""
    return list(dict.fromkeys(["NONE", "ALL", "ALL0.5", *_PARTS, *(presets or {})]))


def read_presets(text: str) -> dict[str, list[str]]:
    """A person's presets from lines `NAME:1,0,…`, as in the extension's lbwpresets.txt.

    Other lines are comments, as there. A name may have one line for each kind of checkpoint.
    """
    presets: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, colon, numbers = line.partition(":")
        if colon and "#" not in line and numbers.count(",") + 1 in _LISTS and name.strip():
            presets.setdefault(name.strip(), []).append(numbers.strip())
    return presets


def _builtin(name: str) -> BlockWeights | None:
    if name in ("NONE", "ALL", "ALL0.5"):
        value = {"NONE": 0.0, "ALL": 1.0, "ALL0.5": 0.5}[name]
        return BlockWeights(name, (value,) * len(SD_BLOCKS), (value,) * len(SDXL_BLOCKS))
    if name not in _PARTS:
        return None
    return BlockWeights(name, _part(_PARTS[name][0], SD_BLOCKS), _part(_PARTS[name][1], SDXL_BLOCKS))


def _part(part: str, blocks: tuple[str, ...]) -> tuple[float, ...]:
    """1 for the text encoders and the blocks of a range, 0 for all others."""
    first, last = (blocks.index(name) for name in part.split("-"))
    return tuple(float(index == 0 or first <= index <= last) for index in range(len(blocks)))


def _parse_list(text: str, what: str) -> BlockWeights:
    items = [item.strip() for item in text.split(",")]
    if len(items) == _FLUX_COUNT:
        raise UserError(f"{what} has {_FLUX_COUNT} numbers, which is for Flux; checkpoints here take {_ALLOWED}")
    if len(items) not in _LISTS:
        raise UserError(f"{what} has {len(items)} numbers; a list has {_ALLOWED}")
    numbers = [_number(item, what) for item in items]
    kind, order = _LISTS[len(items)]
    given = dict(zip(order, numbers, strict=True))
    blocks = SD_BLOCKS if kind == "SD" else SDXL_BLOCKS
    full = tuple(given.get(name, 0.0) for name in blocks)
    return BlockWeights(",".join(items), full if kind == "SD" else None, full if kind == "SDXL" else None)


def _number(item: str, what: str) -> float:
    value = finite_number(item)
    if value is None:
        hint = " (random and inherited weights are not known here)" if item[:1] in ("R", "U", "X") else ""
        raise UserError(f"{what}: {item!r} is no number{hint}; write numbers like 0.5 with commas between them")
    return value
