"""The WebUI's built-in Lora extension: its networks taken out of the weights, its list of files, prompts left to it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

PATCHED_KINDS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)


def networks_module() -> Any | None:
    """The built-in's module `networks`; None where the extension was never loaded."""
    module = sys.modules.get("networks")
    return module if hasattr(module, "network_apply_weights") else None


def network_handler() -> Any | None:
    """The built-in's own ExtraNetwork; None where the extension is not in operation."""
    from modules import patches  # the WebUI's

    module = networks_module()
    in_operation = patches.original("lora_patches", nn.Linear, "forward") is not None
    return module.extra_network_lora if module is not None and in_operation else None


def has_networks() -> bool:
    """Whether the built-in has networks selected, which its layers then put into their weights when they run."""
    module = networks_module()
    return module is not None and bool(module.loaded_networks)


@torch.no_grad()
def restore_all(sd_model: nn.Module | None) -> None:
    """Take every network of the built-in out of the model's weights, bit for bit, and drop its backups.

    Its own restoring is lazy: each layer does it in its next forward pass, and raises there under autograd.
    """
    module = networks_module()
    if module is None:
        return
    if module.loaded_networks:
        module.load_networks([])  # takes embeddings that came with the files away too
    for layer in sd_model.modules() if sd_model is not None else ():
        if isinstance(layer, PATCHED_KINDS) and getattr(layer, "network_weights_backup", None) is not None:
            module.network_apply_weights(layer)
            module.network_reset_cached_weight(layer)


def refresh_list() -> None:
    """Make the built-in look at its folders anew: new files, changed metadata and hashes, new pictures of cards."""
    from modules import ui_extra_networks  # the WebUI's

    module = networks_module()
    if module is None:
        return
    module.list_available_networks()
    for page in ui_extra_networks.extra_pages:
        if page.name == "lora":
            page.lister.reset()


def show_warning(message: str) -> None:
    """Show a warning on the page, with the built-in's gradio."""
    module = networks_module()
    if module is not None:
        module.gr.Warning(message)


def hand_over(p: Any, params_list: Sequence[Any]) -> bool:
    """Let the built-in apply these tags, as if it owned them; False where it is not in operation."""
    handler = network_handler()
    if handler is None:
        return False
    handler.activate(p, list(params_list))
    return True
