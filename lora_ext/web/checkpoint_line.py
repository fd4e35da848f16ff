"""The loaded checkpoint in one line, for the status bar."""

from __future__ import annotations

from lora_ext.protocols import CheckpointInfo


def checkpoint_line(info: CheckpointInfo) -> str:
    """The checkpoint in words: name, kind, prediction type, VAE, where it computes, memory."""
    kind = {"epsilon": "ε-prediction", "v_prediction": "v-prediction"}.get(info.prediction_type, info.prediction_type)
    parts = [info.name, info.architecture, kind, f"VAE: {info.vae}", f"{info.device} {info.dtype}"]
    if info.free_memory_gb is not None and info.total_memory_gb is not None:
        parts.append(f"{info.free_memory_gb:.1f} of {info.total_memory_gb:.1f} GB free")
    return " · ".join(part for part in parts if part)
