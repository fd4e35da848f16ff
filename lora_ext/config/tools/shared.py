"""Settings that many tools have in the same words."""

from __future__ import annotations

from typing import Any

from lora_ext.config.fields import setting


def device_setting() -> Any:
    """Where a tool computes."""
    return setting(
        "auto", "Device", "Where it is computed: auto takes the graphics card if there is one; from the tab, unless a "
        "training has it.",
        choices=("auto", "cpu", "cuda"), sd_scripts="",
    )  # fmt: skip


def overwrite_setting() -> Any:
    """Whether what is there may be replaced."""
    return setting(False, "Overwrite", "Replace the output if it is there already.", sd_scripts="")


def stored_precision_setting(words: str = "") -> Any:
    """What the numbers of a file are stored in, by default as they were."""
    return setting(
        "as stored", "Precision", words or "What the numbers are stored in; as stored is as in the file that is read.",
        choices=("as stored", "fp32", "fp16", "bf16"), sd_scripts="",
    )  # fmt: skip
