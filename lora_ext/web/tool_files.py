"""Which files a page may name for the file tools: those in the program's own folders, by name or by path."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lora_ext.checkpoint.checkpoint_files import CHECKPOINT_SUFFIXES, find_checkpoint, list_checkpoints
from lora_ext.networks.library import KNOWN_SUFFIXES, NetworkLibrary
from lora_ext.networks.listing import list_networks
from lora_ext.protocols import Host, UserError

LOADED = "loaded"
"""The name of the checkpoint that is loaded at the moment."""


class ToolFiles:
    """The networks and checkpoints of a host, as tools get them from a page.

    Nothing outside the folders is read or written for a page; the command line has no such limits. Links in the folders
    may lead elsewhere, as they do for all that reads networks; `..` leads nowhere.
    """

    def __init__(self, host: Host) -> None:
        self.host = host

    def network_names(self) -> list[str]:
        """Every network by its name, by its path where several have the same."""
        return _named([entry.path for entry in list_networks(self.host.folders().networks)])

    def checkpoint_names(self) -> list[str]:
        """The loaded checkpoint, then every one in the folders."""
        return [LOADED, *_named(list(list_checkpoints(self.host.folders().checkpoints)))]

    def find_network(self, text: str) -> Path | None:
        """The file of a network; UserError for a path that is outside the folders."""
        folders = self.host.folders().networks
        if _is_path(text):
            return self._within(text, folders, KNOWN_SUFFIXES, "network")
        return NetworkLibrary(folders).find_file(text)

    def find_checkpoint(self, text: str) -> Path | None:
        """The file of a checkpoint; UserError for a path that is outside the folders."""
        loaded = self.host.loaded_checkpoint()
        if text == LOADED:
            if loaded is None:
                raise UserError(f"{LOADED}: no checkpoint is loaded: load one, or name another one")
            return loaded
        if loaded is not None and text in (str(loaded), loaded.stem):
            return loaded
        folders = self.host.folders().checkpoints
        if _is_path(text):
            return self._within(text, folders, CHECKPOINT_SUFFIXES, "checkpoint")
        return find_checkpoint(text, folders)

    def output(self, name: str, text: str, checkpoint: bool) -> Path:
        """Where a tool writes to: a name in the first folder of its kind, or a path in one of the folders.

        `name` is the setting's; UserError for an empty text and for a path that leads out.
        """
        folders = self.host.folders()
        if not text.strip():
            raise UserError(f"{name} is empty: give the new file a name")
        first = (folders.checkpoints if checkpoint else folders.networks)[0]
        path = Path(os.path.normpath(first / text.strip()))
        allowed = _all_folders(self.host)
        if path in allowed or not _is_in(path, allowed):
            raise UserError(
                f"{name} = {text!r}: from here files are written into {_listed(allowed)}; give a name, or a path in "
                "one of these folders. The command line writes everywhere."
            )
        return path

    def written(self, path: Path) -> None:
        """Tell the host of a new file."""
        folders = self.host.folders()
        if _is_in(path, folders.checkpoints):
            self.host.checkpoint_saved(path)
        else:
            self.host.network_saved(path)

    def _within(self, text: str, folders: Sequence[Path], suffixes: Sequence[str], what: str) -> Path | None:
        """The file of a path in the folders; None where there is none, or it is one of the other kind."""
        paths = [Path(os.path.normpath(folder / text)) for folder in folders]  # an absolute text stays what it is
        inside = [path for path in paths if _is_in(path, folders) and path.suffix.lower() in suffixes]
        if not inside and not any(_is_in(path, _all_folders(self.host)) for path in paths):
            raise UserError(
                f"{text}: this is no {what}'s file in {_listed(folders)}; from here only those can be read, the "
                "command line reads everywhere"
            )
        return next((path for path in inside if path.is_file()), None)


def _all_folders(host: Host) -> tuple[Path, ...]:
    folders = host.folders()
    return (*folders.networks, *folders.checkpoints)


def _is_in(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _named(paths: Sequence[Path]) -> list[str]:
    count = Counter(path.stem for path in paths)
    return [path.stem if count[path.stem] == 1 else str(path) for path in paths]


def _is_path(text: str) -> bool:
    return "/" in text or os.sep in text or Path(text).is_absolute()


def _listed(folders: Sequence[Path]) -> str:
    return " or ".join(str(folder) for folder in folders)
