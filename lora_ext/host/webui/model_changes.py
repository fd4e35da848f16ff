"""Word of another model in use: loaded from its file, or taken from those in memory; and of one that is given up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from modules import script_callbacks, sd_models

_originals: dict[str, Any] = {}


def watch(
    tell: Callable[[Any], None], kept: Callable[[], AbstractContextManager[None]], leave: Callable[[Any], None]
) -> None:
    """Call `tell` with the model whenever one comes into use; to be called anew after each "Reload UI".

    The WebUI tells of what it loads, and is silent about an instance that it takes from memory (a refiner, with
    several checkpoints kept): its own `set_sd_model` is the one place through which these come. With a new instance it
    encodes an empty prompt, for which it takes all networks out: those of a picture that a refiner goes on with are
    `kept` over that. `leave` is called with a model whose memory the WebUI is about to free: whoever still held its
    parameters would keep them beside those of the next one.
    """
    unwatch()
    model_data = sd_models.model_data
    original = model_data.set_sd_model

    def set_sd_model(model: Any, already_loaded: bool = False) -> None:
        original(model, already_loaded=already_loaded)
        if already_loaded:
            tell(model)

    def get_empty_cond(sd_model: Any) -> Any:
        with kept():
            return _originals["get_empty_cond"](sd_model)

    def send_model_to_trash(sd_model: Any) -> None:
        leave(sd_model)
        _originals["send_model_to_trash"](sd_model)

    model_data.set_sd_model = set_sd_model
    for replacement in (get_empty_cond, send_model_to_trash):
        _originals[replacement.__name__] = getattr(sd_models, replacement.__name__)
        setattr(sd_models, replacement.__name__, replacement)
    script_callbacks.on_model_loaded(tell, name="lora_workshop_tags")


def unwatch() -> None:
    """End it; the WebUI drops its callbacks by itself."""
    vars(sd_models.model_data).pop("set_sd_model", None)
    while _originals:
        setattr(sd_models, *_originals.popitem())
