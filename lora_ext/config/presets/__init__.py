"""Settings that are known to work, as TOML files: what is trained, and on what card."""

from lora_ext.config.presets.presets import Preset, card_for_memory, compose, preset_named, presets

__all__ = ["Preset", "card_for_memory", "compose", "preset_named", "presets"]
