"""What checking networks is told."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting


@dataclass(frozen=True)
class CheckSettings:
    """The networks, and a checkpoint to hold them against."""

    files: str = setting(
        "", "Networks", "Names or files of networks, one a line; each gets a verdict: healthy, doubtful or damaged.",
        lines=3, sd_scripts="", kind="networks",
    )  # fmt: skip
    checkpoint: str = setting(
        "", "Checkpoint", "Name or file of the checkpoint that they are for: then it is told which modules find their "
        "place in it, and how strongly each block is changed.",
        sd_scripts="", kind="checkpoint",
    )  # fmt: skip
