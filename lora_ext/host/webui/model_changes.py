"""Word of another model in use: loaded from its file, or taken from those that are kept in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import script_callbacks, sd_models


def watch(tell: Callable[[Any], None]) -> None:
    """Call `tell` with the model whenever one comes into use; to be called anew after each "Reload UI".

    The WebUI tells of what it loads, and is silent about an instance that it takes from memory (a refiner, with
    several checkpoints kept): its own `set_sd_model` is the one place through which these come.
    """
    unwatch()
    model_data = sd_models.model_data
    original = model_data.set_sd_model

    def set_sd_model(model: Any, already_loaded: bool = False) -> None:
        original(model, already_loaded=already_loaded)
        if already_loaded:
            tell(model)

    model_data.set_sd_model = set_sd_model
    script_callbacks.on_model_loaded(tell, name="lora_workshop_tags")


def unwatch() -> None:
    """End it; the WebUI drops its callbacks by itself."""
    vars(sd_models.model_data).pop("set_sd_model", None)
