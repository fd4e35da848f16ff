"""Our section of the WebUI's settings."""

from __future__ import annotations

import sys
from pathlib import Path

from modules import shared

from lora_ext.host.webui import builtin_lora
from lora_ext.networks.folder_list import parse_folders

SECTION = ("lora_workshop", "LoRA Workshop")
TAGS = "lora_workshop_tags"
EXTRA_FOLDERS = "lora_workshop_extra_folders"
OURS, BUILTIN = "LoRA Workshop", "built-in"
UNKNOWN_THERE = "the built-in, which does not know networks in training"
LEFT = f"tags are left to {UNKNOWN_THERE} (Settings > LoRA Workshop)"


def register() -> None:
    """Declare the settings; doing so again changes nothing."""
    gradio = sys.modules["gradio"]  # the WebUI's, loaded before any extension
    shared.options_templates.update(
        shared.options_section(
            SECTION,
            {
                TAGS: shared.OptionInfo(
                    OURS, "Who applies <lora:…> and <lyco:…> in prompts", gradio.Radio, {"choices": [OURS, BUILTIN]}
                ).info("networks of a kind that LoRA Workshop cannot apply are left to the built-in in either case"),
                EXTRA_FOLDERS: shared.OptionInfo("", "Further folders with networks, separated by commas").info(
                    'a path that holds a comma stands in "quotes"; the built-in does not look there'
                ),
            },
        )
    )


def extra_folders() -> list[Path]:
    """The further folders with networks that the settings name."""
    return parse_folders(getattr(shared.opts, EXTRA_FOLDERS, "") or "")


def left_to_builtin() -> bool:
    """Whether a person wants the built-in to apply tags, and it is there to do so."""
    return getattr(shared.opts, TAGS, None) == BUILTIN and builtin_lora.network_handler() is not None
