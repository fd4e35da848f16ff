"""Our section of the WebUI's settings."""

from __future__ import annotations

import sys

from modules import shared

SECTION = ("lora_workshop", "LoRA Workshop")
TAGS = "lora_workshop_tags"
OURS, BUILTIN = "LoRA Workshop", "built-in"


def register() -> None:
    """Declare the settings; doing so again changes nothing."""
    gradio = sys.modules["gradio"]  # the WebUI's, loaded before any extension
    shared.options_templates.update(
        shared.options_section(
            SECTION,
            {
                TAGS: shared.OptionInfo(
                    OURS, "Who applies <lora:…> and <lyco:…> in prompts", gradio.Radio, {"choices": [OURS, BUILTIN]}
                ).info("networks of a kind that LoRA Workshop cannot apply are left to the built-in in either case")
            },
        )
    )
