"""peft's alpha, which is in no tensor: in `adapter_config.json` beside the file, or in diffusers' metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CONFIG_KEY = "adapter_config"
"""Where `read_network` puts the text of peft's `adapter_config.json`."""

_DIFFUSERS_KEY = "lora_adapter_metadata"
_PARTS = {"lora_unet_": "unet", "lora_te2_": "text_encoder_2", "lora_te": "text_encoder"}
_LONGEST = 10_000_000  # bytes


def adapter_config_of(path: Path) -> str | None:
    """The text of peft's configuration beside one of its files; None beside other files."""
    config = path.parent / "adapter_config.json"
    if path.stem != "adapter_model" or not config.is_file() or config.stat().st_size > _LONGEST:
        return None
    return config.read_text(encoding="utf-8", errors="replace")


def adapter_alpha(key: str, rank: int, metadata: Mapping[str, str]) -> Tensor | None:
    """The alpha of a module of this rank such that alpha / rank is peft's scale; None where nothing says it."""
    config = _table(metadata.get(CONFIG_KEY))
    if not config:
        part = next((name for prefix, name in _PARTS.items() if key.startswith(prefix)), "unet")
        everything = _table(metadata.get(_DIFFUSERS_KEY))
        start = f"{part}."
        config = {name.removeprefix(start): value for name, value in everything.items() if name.startswith(start)}
    alpha = config.get("lora_alpha", config.get("alpha"))
    pattern = config.get("alpha_pattern")
    for name, value in pattern.items() if isinstance(pattern, dict) else ():
        if key.endswith("_" + name.replace(".", "_")):
            alpha = value
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        return None
    return torch.tensor(float(alpha) * (math.sqrt(rank) if config.get("use_rslora") is True else 1.0))


def _table(text: str | None) -> dict[str, Any]:
    try:
        values = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
