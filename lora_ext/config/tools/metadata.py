"""What showing and changing a network's metadata is told."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting


@dataclass(frozen=True)
class MetadataSettings:
    """A network, and what of its metadata is to be otherwise."""

    file: str = setting(
        "", "Network", "Name or file of the network. Its tensors stay byte for byte, and its hashes stay right.",
        sd_scripts="", kind="network",
    )  # fmt: skip
    set: str = setting(
        "", "Set", "Values to set, one a line: ss_training_comment=made for the fair. Without any, and with nothing to "
        "remove, the metadata are shown.",
        lines=3, sd_scripts="",
    )  # fmt: skip
    remove: str = setting(
        "", "Remove", "Keys to take away, one a line: ss_dataset_dirs.", lines=2, sd_scripts=""
    )  # fmt: skip
