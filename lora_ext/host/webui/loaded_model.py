"""One instance of the WebUI's model with the networks of the prompt in it."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from lora_ext.apply.active import ActiveNetworks
from lora_ext.apply.loaded_files import LoadedFiles
from lora_ext.apply.schedule import tags_at
from lora_ext.apply.tags import LoraTag
from lora_ext.host.webui.bundled_embeddings import BundledEmbeddings
from lora_ext.host.webui.state import get_host


class LoadedModel:
    """What applying needs of one instance of the WebUI's model: kept for as long as this instance is in use."""

    def __init__(self, sd_model: nn.Module, files: LoadedFiles) -> None:
        host = get_host()
        checkpoint = host.checkpoint()
        self._sd_model = weakref.ref(sd_model)
        self.active = ActiveNetworks(checkpoint, host.ledger, host.library, files)
        self.tags: list[LoraTag] = []
        self.in_weights: list[LoraTag] = []
        self._embeddings = BundledEmbeddings(sd_model)
        # Others load weights into parts of the model by themselves, so each part has the hook.
        parts = (sd_model, checkpoint.unet, *(encoder.module for encoder in checkpoint.text_encoders))
        self._hooks = [part._register_load_state_dict_pre_hook(self.let_go) for part in parts]

    def activate(self, tags: list[LoraTag]) -> list[str]:
        """Make the weights those of the tags, as in all sampling steps; what a person should know."""
        self.tags = self.in_weights = tags
        messages = self.active.activate(tags)
        return [*messages, *self._embeddings.show(self.active.embeddings())]

    def go_to_step(self, step: int) -> None:
        """Make the weights those of one sampling step, counted from 0."""
        tags = tags_at(self.tags, step)
        if tags != self.in_weights:
            self.active.activate(tags)
            self.in_weights = tags

    def deactivate(self) -> None:
        """Restore the weights: there are no tags any more."""
        self.tags = self.in_weights = []
        self.active.deactivate()
        self._embeddings.show({})

    def belongs_to(self, sd_model: nn.Module) -> bool:
        """Whether this is of the given instance."""
        return self._sd_model() is sd_model

    def let_go(self, *_: Any) -> None:
        """Other weights are about to be loaded into the same parameters, or these to be thrown away: what is patched
        goes before, and nothing here holds a parameter any more. The tags stay, for whoever comes next.

        The built-in drops its own backups then.
        """
        self.active.deactivate()
        self.in_weights = []

    def close(self) -> None:
        """Restore the instance, and leave it."""
        self.deactivate()
        for hook in self._hooks:
            hook.remove()
