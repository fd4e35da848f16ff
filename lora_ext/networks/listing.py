"""All network files in some folders, for a list that a person looks through: names and dates, no file is opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_ext.networks.card_files import cover_name
from lora_ext.networks.library import KNOWN_SUFFIXES
from lora_ext.networks.pickled_file import is_text_companion
from lora_ext.protocols import UserError


@dataclass(frozen=True)
class NetworkEntry:
    """A network file: `folder` is relative to the one that was searched, `changed` in seconds since 1970."""

    path: Path
    folder: str
    size: int
    changed: float
    cover: Path | None


def list_networks(folders: Sequence[Path]) -> list[NetworkEntry]:
    """Every network in the folders and their sub-folders, folder by folder, by name."""
    found: dict[Path, NetworkEntry] = {}
    for entry in (entry for folder in folders for entry in _within(folder)):
        found.setdefault(entry.path, entry)  # one of the folders may lie in another
    return list(found.values())


def _within(top: Path) -> Iterator[NetworkEntry]:
    for root, directories, names in os.walk(top, followlinks=True):
        directories.sort(key=str.lower)
        there = set(names)
        for name in sorted(names, key=str.lower):
            stem, suffix = os.path.splitext(name)
            path = Path(root, name)
            if suffix.lower() not in KNOWN_SUFFIXES or _is_part(path):
                continue
            try:
                status = path.stat()
            except OSError:  # deleted meanwhile, or a link to nowhere
                continue
            if not stat.S_ISREG(status.st_mode):
                continue
            cover = cover_name(stem, there)
            folder = os.path.relpath(root, top)
            yield NetworkEntry(
                path,
                "" if folder == "." else folder,
                status.st_size,
                status.st_mtime,
                path.with_name(cover) if cover else None,
            )


def _is_part(path: Path) -> bool:
    """Whether it is the text encoder's part of a pickled file beside it."""
    return path.suffix.lower() != ".safetensors" and is_text_companion(path)


def network_at(text: str, folders: Sequence[Path]) -> Path:
    """The network file of a path that somebody sent; UserError unless it is one, in one of the folders.

    Links in the folders may lead elsewhere, as they do for all that reads networks; `..` leads nowhere.
    """
    path = Path(os.path.normpath(text))
    if path.suffix.lower() not in KNOWN_SUFFIXES or not any(path.is_relative_to(folder) for folder in folders):
        there = ", ".join(str(folder) for folder in folders)
        raise UserError(f"{text}: this is no network's file in {there}")
    if not path.is_file():
        raise UserError(f"{text} is no longer there: refresh the list")
    return path
