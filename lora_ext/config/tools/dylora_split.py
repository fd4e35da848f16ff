"""What splitting a DyLoRA is told."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting
from lora_ext.config.tools.shared import overwrite_setting, stored_precision_setting

STRENGTHS = ("kept", "trained")


@dataclass(frozen=True)
class DyloraSplitSettings:
    """A DyLoRA, the ranks that become files, and where they go."""

    file: str = setting("", "Network", "Name or file of the DyLoRA.", sd_scripts="", kind="network")
    unit: int | None = setting(
        None, "Unit", "A file for every multiple of so many ranks below the network's own. Empty: what the network was "
        "trained with.",
        minimum=1, maximum=16384, sd_scripts="",
    )  # fmt: skip
    ranks: str = setting("", "Ranks", "The ranks themselves instead, with commas between them: 4,8,32.", sd_scripts="")
    strength: str = setting(
        "kept", "Strength", "kept leaves alpha as it is, as sd-scripts does. trained gives a DyLoRA of sd-scripts' own "
        "the strength that each rank was trained with, which is less; others were trained with what is kept.",
        choices=STRENGTHS, sd_scripts="",
    )  # fmt: skip
    precision: str = stored_precision_setting()
    out: str = setting(
        "", "Output", "A folder, or a name ending with .safetensors; each file's rank is put behind the name: "
        "name-0004.safetensors.",
        kind="output", sd_scripts="",
    )  # fmt: skip
    overwrite: bool = overwrite_setting()
