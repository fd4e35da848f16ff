"""The WebUI's built-in Lora in this process, around a model that the WebUI did not load."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_ext.checkpoint.checkpoint import Checkpoint


class BuiltinLora:
    """`networks.py` of a WebUI's folder; needs the WebUI's interpreter and its packages."""

    def __init__(self, webui: Path, networks: Path, device: str) -> None:
        sys.argv = ["webui.py", "--data-dir", str(webui), "--skip-torch-cuda-test"]
        sys.argv += ["--no-half", "--use-cpu", "all"] if device == "cpu" else []
        os.chdir(webui)
        sys.path[:0] = [str(webui), str(webui / "extensions-builtin" / "Lora")]
        from modules import initialize

        initialize.imports()
        from modules import sd_models, shared

        shared.cmd_opts.lora_dir = str(networks)
        shared.cmd_opts.lyco_dir_backcompat = str(networks / "none")
        shared.opts.data |= {"lora_functional": False, "lora_in_memory_limit": 100, "lora_bundled_ti_to_infotext": True}
        import networks as module

        self._module: Any = module
        self._data = sd_models.model_data
        self._layers: list[nn.Module] = []

    def take(self, checkpoint: Checkpoint) -> None:
        """Make the checkpoint the model that is loaded."""
        model = _model_of(checkpoint)
        self._data.sd_model = model
        self._data.was_loaded_at_least_once = True
        self._module.assign_network_names_to_compvis_modules(model)
        kinds = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)
        self._layers = [layer for layer in model.modules() if isinstance(layer, kinds)]

    @torch.no_grad()
    def activate(self, wanted: Sequence[tuple[str, float]]) -> None:
        """What it does for a prompt's tags, and then in every layer's next forward."""
        names, multipliers = [name for name, _ in wanted], [multiplier for _, multiplier in wanted]
        self._module.load_networks(names, multipliers, multipliers, [None] * len(names))
        for layer in self._layers:
            self._module.network_apply_weights(layer)
        errors = getattr(self._module.extra_network_lora, "errors", None)
        if errors:
            raise RuntimeError(f"the built-in failed in layers of {errors}")

    def release(self) -> None:
        """Drop its backups and files."""
        for layer in self._layers:
            self._module.network_reset_cached_weight(layer)
        self._module.networks_in_memory.clear()


def _model_of(checkpoint: Checkpoint) -> nn.Module:
    """The tree that the WebUI has around U-Net and text encoders."""
    model: Any = nn.Module()
    model.is_sdxl = checkpoint.architecture == "SDXL"
    model.model = nn.Module()
    model.model.diffusion_model = checkpoint.unet
    wrapped = [_wrapped(encoder.module) for encoder in checkpoint.text_encoders]
    if model.is_sdxl:
        model.conditioner = nn.Module()
        model.conditioner.embedders = nn.ModuleList(wrapped)
    else:
        model.cond_stage_model = wrapped[0] if wrapped else nn.Module()
    return model


def _wrapped(module: nn.Module) -> nn.Module:
    outer: Any = nn.Module()
    outer.wrapped = nn.Module()
    setattr(outer.wrapped, "model" if hasattr(module, "token_embedding") else "transformer", module)
    return outer
