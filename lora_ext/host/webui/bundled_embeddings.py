"""Embeddings that came with networks: the WebUI's prompts know them for as long as the networks are in place."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from modules import sd_hijack, shared
from modules.textual_inversion import textual_inversion
from torch import Tensor, nn

from lora_ext.apply.active import Embeddings

_NESTED = "string_to_param"


class BundledEmbeddings:
    """Those that stand in the WebUI's list of embeddings because of us."""

    def __init__(self, sd_model: nn.Module) -> None:
        self._sd_model = weakref.ref(sd_model)
        self._shown: dict[str, tuple[Mapping[str, Tensor], Any]] = {}  # with the tensors that they were made of

    def show(self, embeddings: Embeddings) -> list[str]:
        """Make the list hold exactly these besides a person's own, which come first; what could not be shown."""
        for name in [name for name in self._shown if not self._is_shown(name, embeddings)]:
            self._hide(name)
        messages = []
        for name, (network, tensors) in embeddings.items():
            if name not in self._shown:
                messages += self._show(name, network, tensors)
        return messages

    def _is_shown(self, name: str, embeddings: Embeddings) -> bool:
        """Whether it stays: it is wanted, made of the same tensors, and the WebUI has not read its list anew."""
        tensors, embedding = self._shown[name]
        is_listed = _database().word_embeddings.get(name) is embedding
        return is_listed and name in embeddings and embeddings[name][1] is tensors

    def _show(self, name: str, network: str, tensors: Mapping[str, Tensor]) -> list[str]:
        database, model = _database(), self._sd_model()
        if name in database.word_embeddings:
            return [f"{network}: its embedding {name} is left out, as there is another one of this name"]
        try:
            embedding = textual_inversion.create_embedding_from_data(_data(tensors), name, filename=f"{network}/{name}")
        except Exception as error:  # the WebUI's own words for what it does not know are plain exceptions
            return [f"{network}: its embedding {name} is left out: {error}"]
        if database.expected_shape not in (-1, embedding.shape):
            return [
                f"{network}: its embedding {name} is left out: it is for another kind of checkpoint "
                f"({embedding.shape} numbers a token instead of {database.expected_shape})"
            ]
        if getattr(shared.opts, "lora_bundled_ti_to_infotext", True):
            embedding.shorthash = network  # "TI hashes" then names the file, as the built-in does
        database.register_embedding(embedding, model)
        self._shown[name] = tensors, embedding
        return []

    def _hide(self, name: str) -> None:
        _, embedding = self._shown.pop(name)
        model = self._sd_model()
        if model is not None and _database().word_embeddings.get(name) is embedding:
            _database().register_embedding_by_name(None, model, name)


def _database() -> Any:
    return sd_hijack.model_hijack.embedding_db


def _data(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors as they stand in an embedding's own file: those of `string_to_param.*` in a dictionary there."""
    nested = {
        part.removeprefix(f"{_NESTED}."): tensor for part, tensor in tensors.items() if part.startswith(f"{_NESTED}.")
    }
    return {_NESTED: nested} if nested else dict(tensors)
