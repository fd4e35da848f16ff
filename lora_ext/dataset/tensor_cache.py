"""Tensors kept in files between runs, found again by what they were made from, and never trusted blindly."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError  # type: ignore[attr-defined]
from safetensors.torch import load, save
from torch import Tensor

FOLDER_NAME = "lora-workshop-cache"
"""Lies beside the pictures; may be deleted at any time."""

_FORMAT = "1"
_WRITING = ".writing"
_LEFTOVER_AFTER = 3600.0  # seconds

Key = Mapping[str, str]
"""Everything that the tensors depend on, by name."""


class TensorCache:
    """Files of tensors of one kind ("latents", "encodings"), each named after its key.

    A file is taken only if it holds the very key and if its tensors have the digest that they were written with:
    whatever is truncated, changed or foreign counts as not there. `warn` hears once why nothing is written any more.
    """

    def __init__(self, kind: str, warn: Callable[[str], None]) -> None:
        self.kind = kind
        self._warn = warn
        self._writes = True

    def read(self, beside: Path, key: Key) -> dict[str, Tensor] | None:
        """The tensors of a key from the cache in the folder `beside`; None where there are none to be trusted."""
        text = self._key_text(key)
        try:
            content = self._path(beside, text).read_bytes()
            told = _metadata(content)
            if told.get("key") != text:
                return None
            tensors = load(content)
        except (OSError, ValueError, AttributeError, SafetensorError):
            return None
        return tensors if told.get("digest") == _digest(tensors) else None

    def write(self, beside: Path, key: Key, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a key; where that fails, nothing more is written and the run goes on without."""
        if not self._writes:
            return
        text = self._key_text(key)
        path = self._path(beside, text)
        hidden = hidden_part(path)
        if hidden:
            self._give_up(f"{beside} lies in a hidden folder ({hidden}): move the pictures, or switch the cache off")
            return
        content = save(dict(tensors), {"key": text, "digest": _digest(tensors)})
        try:
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, content)
        except OSError as error:
            self._give_up(f"{path.parent} cannot be written to ({error.strerror or error}): free some space there")

    def _give_up(self, reason: str) -> None:
        self._writes = False
        self._warn(f"No more {self.kind} are kept on disk, the run goes on with those in memory. {reason}")

    def _key_text(self, key: Key) -> str:
        return json.dumps({**key, "kind": self.kind, "format": _FORMAT}, sort_keys=True)

    def _path(self, beside: Path, key_text: str) -> Path:
        name = hashlib.blake2b(key_text.encode(), digest_size=16).hexdigest()
        return beside / FOLDER_NAME / f"{self.kind}-{name}.safetensors"


def hidden_part(path: Path) -> str | None:
    """The first name on the way to `path` that begins with a dot: such folders are passed over by other programs."""
    return next((part for part in Path(os.path.abspath(path)).parts if part.startswith(".")), None)


def delete_leftovers(beside: Path) -> None:
    """Delete what runs that were killed while writing have left in a cache an hour ago or more."""
    for leftover in (beside / FOLDER_NAME).glob(f"*{_WRITING}"):
        with contextlib.suppress(OSError):  # gone already, or not ours to delete
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_AFTER:
                leftover.unlink()


def _replace(path: Path, content: bytes) -> None:
    """Whoever reads the file finds the old one or the new one."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_WRITING}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file; ValueError or AttributeError where it is none."""
    length = int.from_bytes(content[:8], "little")
    told: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return told


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values."""
    return hashlib.blake2b(save(dict(tensors)), digest_size=16).hexdigest()
