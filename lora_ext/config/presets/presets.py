"""Presets are TOML files with a title, a description, and settings in the tables of our settings files."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lora_ext.config.toml_files import flatten_tables
from lora_ext.config.train_config import GROUP_TITLES, make_config
from lora_ext.protocols import ConfigError, UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).resolve().parent
_ORDER = ("character", "style", "concept", "sdxl")


@dataclass(frozen=True)
class Preset:
    """Settings under a name: of what is trained ("subject"), or of the graphics card that it is trained on ("card").

    `memory_gb` is the least that a card has; `for_sdxl` are a card's settings on top where SDXL is trained.
    """

    name: str
    title: str
    description: str
    kind: Literal["subject", "card"]
    values: Mapping[str, Any]
    architecture: str = "SD1"
    memory_gb: float | None = None
    for_sdxl: Mapping[str, Any] = field(default_factory=dict)


@cache
def presets() -> tuple[Preset, ...]:
    """The presets that come along: subjects first, then cards from small to large."""
    found = [read_preset(path) for path in FOLDER.glob("*.toml")]
    subjects = [each for each in found if each.kind == "subject"]
    cards = [each for each in found if each.kind == "card"]
    subjects.sort(key=lambda each: (_ORDER.index(each.name) if each.name in _ORDER else len(_ORDER), each.name))
    return (*subjects, *sorted(cards, key=lambda each: each.memory_gb or 0))


def read_preset(path: Path) -> Preset:
    """The preset in a file of ours: a title, a description, and tables of settings.

    Raises UserError where it cannot be read, ConfigError where its values do not fit.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"preset {path} cannot be read as TOML: {error}") from error
    tables = {name: table for name, table in document.items() if name in GROUP_TITLES}
    known = ("title", "description", "architecture", "memory_gb", "sdxl", *GROUP_TITLES)
    unknown = [name for name in document if name not in known]
    if unknown:
        raise ConfigError([f"preset {path.name}: {name} is none of {', '.join(known)}" for name in unknown])
    memory = document.get("memory_gb")
    preset = Preset(
        name=path.stem,
        title=str(document.get("title", path.stem)),
        description=str(document.get("description", "")),
        kind="subject" if memory is None else "card",
        values=flatten_tables(tables),
        architecture=str(document.get("architecture", "SD1")),
        memory_gb=None if memory is None else float(memory),
        for_sdxl=flatten_tables(document.get("sdxl", {})),
    )
    make_config({**preset.values, **preset.for_sdxl})
    return preset


def preset_named(name: str) -> Preset:
    """One of `presets()`; raises UserError with the names that there are."""
    for preset in presets():
        if preset.name == name.strip().lower():
            return preset
    names = [preset.name for preset in presets()]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"there is no preset {name!r}: allowed are {', '.join(names)}{hint}")


def compose(chosen: Iterable[Preset], bf16: bool = True) -> dict[str, Any]:
    """The settings of several presets, later ones over earlier; cards know whether SDXL is trained.

    Without `bf16` (cards before the RTX 3000) fp16 takes its place.
    """
    presets_in_order = list(chosen)
    sdxl = any(preset.architecture == "SDXL" for preset in presets_in_order)
    values: dict[str, Any] = {}
    for preset in presets_in_order:
        values.update(preset.values)
        values.update(preset.for_sdxl if sdxl else {})
    if not bf16 and values.get("mixed_precision") == "bf16":
        values["mixed_precision"] = "fp16"
    return values


def card_for_memory(total_gb: float) -> Preset:
    """The card whose memory is there; a card tells a little less than what is printed on its box."""
    cards = [preset for preset in presets() if preset.kind == "card"]
    return [card for card in cards if (card.memory_gb or 0) <= total_gb + 0.75][-1]
