"""What telling of a file is told."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting


@dataclass(frozen=True)
class InspectSettings:
    """The file."""

    file: str = setting(
        "", "File", "Name or file of a network, or the file of a checkpoint; nothing is changed.",
        sd_scripts="", kind="network",
    )  # fmt: skip
