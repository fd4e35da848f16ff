"""Finding checkpoint files by name in some folders and their sub-folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt")
_VAE_SUFFIXES = (".vae.safetensors", ".vae.ckpt")


def list_checkpoints(folders: Sequence[Path]) -> Iterator[Path]:
    """Every checkpoint, folder by folder, by name; a VAE's file beside one is none."""
    for folder in folders:
        for root, directories, names in os.walk(folder, followlinks=True):
            directories.sort(key=str.lower)
            yield from (Path(root, name) for name in sorted(names, key=str.lower) if _is_checkpoint(name))


def find_checkpoint(text: str, folders: Sequence[Path]) -> Path | None:
    """The first checkpoint of this name, with or without its ending; None where there is none."""
    return next((path for path in list_checkpoints(folders) if text in (path.stem, path.name)), None)


def _is_checkpoint(name: str) -> bool:
    return name.lower().endswith(CHECKPOINT_SUFFIXES) and not name.lower().endswith(_VAE_SUFFIXES)
