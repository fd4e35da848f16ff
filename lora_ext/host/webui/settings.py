"""Our section of the WebUI's settings."""

from __future__ import annotations

import sys
from pathlib import Path

from modules import paths_internal, shared

from lora_ext.apply.loaded_files import MEMORY_LIMIT
from lora_ext.host.webui import builtin_lora
from lora_ext.networks.block_weights import preset_names, read_presets
from lora_ext.networks.folder_list import parse_folders

SECTION = ("lora_workshop", "LoRA Workshop")
TAGS = "lora_workshop_tags"
MEMORY = "lora_workshop_memory"
MEGABYTE = 2**20
EXTRA_FOLDERS = "lora_workshop_extra_folders"
BLOCK_PRESETS = "lora_workshop_block_presets"
OURS, BUILTIN = "LoRA Workshop", "built-in"
UNKNOWN_THERE = "the built-in, which does not know networks in training"
_BLOCK_WEIGHT_FILE = Path(paths_internal.extensions_dir, "sd-webui-lora-block-weight", "scripts", "lbwpresets.txt")
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
                MEMORY: shared.OptionInfo(
                    MEMORY_LIMIT // MEGABYTE,
                    "Main memory for network files that the prompt does not name, in MB",
                    gradio.Slider,
                    {"minimum": 0, "maximum": 16384, "step": 128},
                ).info("so that a network that was used before need not be read again; 0 keeps none"),
                EXTRA_FOLDERS: shared.OptionInfo("", "Further folders with networks, separated by commas").info(
                    'a path that holds a comma stands in "quotes"; the built-in does not look there'
                ),
                BLOCK_PRESETS: shared.OptionInfo(
                    "", "Your own presets for lbw= in tags, a line each", gradio.Textbox, {"lines": 4}
                ).info(
                    "like FACE:1,0,0,… with 17 or 26 numbers for SD1 and SD2, 12 or 20 for SDXL; "
                    "those of the extension LoRA Block Weight are known too"
                ),
            },
        )
    )


def extra_folders() -> list[Path]:
    """The further folders with networks that the settings name."""
    return parse_folders(getattr(shared.opts, EXTRA_FOLDERS, "") or "")


def block_presets() -> dict[str, list[str]]:
    """A person's own presets for `lbw=`: those in the settings, then those of the extension LoRA Block Weight."""
    theirs = ""
    if _BLOCK_WEIGHT_FILE.is_file():
        theirs = _BLOCK_WEIGHT_FILE.read_text(encoding="utf-8", errors="replace")
    own = read_presets(getattr(shared.opts, BLOCK_PRESETS, None) or "")
    return {**{name: lists for name, lists in read_presets(theirs).items() if name not in preset_names()}, **own}


def memory_limit() -> int:
    """Bytes of network files that are kept besides those of the prompt."""
    return int(getattr(shared.opts, MEMORY, MEMORY_LIMIT // MEGABYTE)) * MEGABYTE


def left_to_builtin() -> bool:
    """Whether a person wants the built-in to apply tags, and it is there to do so."""
    return getattr(shared.opts, TAGS, None) == BUILTIN and builtin_lora.network_handler() is not None
