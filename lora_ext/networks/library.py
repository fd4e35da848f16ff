"""Finding network files by the name in a tag."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from lora_ext.checkpoint.safetensors_file import read_metadata
from lora_ext.networks.pickled_file import is_text_companion
from lora_ext.protocols import UserError

Identity = tuple[Path, int, int]
"""Path, mtime in ns, size in bytes: a file that was written anew is another one."""

Epoch = int | Literal["last"]
"""An epoch's number, or the last one, whatever its number is."""

_EPOCH_SUFFIX = re.compile(r"-\d{6}$")
_READ = ".safetensors"
KNOWN_SUFFIXES = (_READ, ".pt", ".ckpt")
_SHORT = 256  # characters


def identity(path: Path) -> Identity | None:
    """What tells a file from the one that it replaced; None where there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return path, status.st_mtime_ns, status.st_size


class NetworkLibrary:
    """The network files in some folders and their sub-folders.

    Every call looks at the folders anew, so a file that was just written is there; metadata are read once for each
    state of a file.
    Live files are elsewhere, and go by a name for a while (a network in training, while its run is paused).
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._live: dict[str, Path] = {}
        self._metadata: dict[Path, tuple[Identity, dict[str, str]]] = {}

    def set_live(self, name: str, path: Path | None) -> None:
        """Let a name stand for a live file, before all others; None takes the name away."""
        if path is None:
            self._live.pop(name, None)
        else:
            self._live[name] = path

    def is_live(self, name: str) -> bool:
        """Whether the name stands for a live file."""
        return name in self._live

    def find(self, name: str, epoch: Epoch | None = None) -> Path | None:
        """The live file of this name, or else the file of this stem, of this stem in other letter case, or of this
        `ss_output_name`; with `epoch`, the file of that epoch of the run that such a file belongs to.

        Earlier folders come first. An `ss_output_name` that several files share stands for none of them. Raises
        UserError where the run has no file of that epoch.
        """
        if epoch is not None:
            return self._find_epoch(name, epoch)
        live = self._live.get(name)
        if live is not None:
            return live
        files = sorted(self._files(KNOWN_SUFFIXES), key=lambda path: KNOWN_SUFFIXES.index(path.suffix.lower()))
        for same in (str.__eq__, _equal_but_for_case):
            for path in files:
                if same(path.stem, name):
                    return path
        aliased = [path for path in files if self.alias(path) == name]
        return aliased[0] if len(aliased) == 1 else None

    def find_file(self, text: str) -> Path | None:
        """What `find` gives for a name as a person writes it, with or without its ending; an empty one is none."""
        if not text:
            return None
        ending = os.path.splitext(text)[1].lower()
        named = (path for path in self._files((ending,)) if path.name == text) if ending in KNOWN_SUFFIXES else ()
        return self.find(text) or next(iter(named), None)

    def _find_epoch(self, name: str, epoch: Epoch) -> Path | None:
        files = self.epochs_of(_EPOCH_SUFFIX.sub("", name))
        if not files:
            path = self.find(name)  # what a file calls itself, or another letter case
            files = self.epochs_of(_EPOCH_SUFFIX.sub("", path.stem)) if path is not None else []
        return epoch_file(name, epoch, files) if files else None

    def names(self) -> list[str]:
        """Stems of all files that can be read, sorted; a text encoder's file goes with the one that it belongs to."""
        files = self._files(KNOWN_SUFFIXES)
        return sorted(
            {path.stem for path in files if path.suffix == _READ or not is_text_companion(path)}, key=str.lower
        )

    def epochs_of(self, name: str) -> list[tuple[int | None, Path]]:
        """The epochs of the latest run of this name, in order, the last file (`name.safetensors`) at the end.

        The last file's epoch is the one in its metadata, None where it has none.
        """
        numbered = re.compile(re.escape(name) + r"-(\d{6})")
        epochs: dict[int, Path] = {}
        last: Path | None = None
        for path in self._files((_READ,)):
            match = numbered.fullmatch(path.stem)
            if match:
                epochs.setdefault(int(match[1]), path)
            elif path.stem == name and last is None:
                last = path
        found: list[tuple[int | None, Path]] = [(number, epochs[number]) for number in sorted(epochs)]
        if last is not None:
            found.append((self._epoch(last), last))
        return self._of_latest_run(found)

    def alias(self, path: Path) -> str | None:
        """`ss_output_name` in a file's metadata; None where there is none, or the file cannot be read."""
        return self.short_metadata(path).get("ss_output_name")

    def short_metadata(self, path: Path) -> dict[str, str]:
        """A file's metadata as far as its values are short, read once for each state of the file.

        None of it where it has none, or cannot be read. The long ones, of thousands of files, would fill the memory.
        """
        key = identity(path)
        if key is None or path.suffix.lower() != _READ:
            return {}
        known = self._metadata.get(path)
        if known is None or known[0] != key:
            try:
                metadata = read_metadata(path)
                known = key, {name: value for name, value in metadata.items() if len(value) <= _SHORT}
            except UserError:
                known = key, {}
            self._metadata[path] = known
        return known[1]

    def find_hash(self, digits: str) -> Path | None:
        """The first file whose metadata has a hash that begins with these digits."""
        for path in self._files((_READ,)):
            stored = self.short_metadata(path)
            if any(stored.get(key, "").startswith(digits) for key in ("sshs_model_hash", "sshs_legacy_hash")):
                return path
        return None

    def _files(self, suffixes: Sequence[str]) -> Iterator[Path]:
        """Each file once, though one of the folders may lie in another."""
        seen: set[Path] = set()
        for folder in self.folders:
            for root, directories, names in os.walk(folder, followlinks=True):
                directories.sort(key=str.lower)
                for name in sorted(names, key=str.lower):
                    if os.path.splitext(name)[1].lower() not in suffixes or (path := Path(root, name)) in seen:
                        continue
                    seen.add(path)
                    yield path

    def _epoch(self, path: Path) -> int | None:
        text = self.short_metadata(path).get("ss_epoch", "")
        return int(text) if text.isdecimal() else None

    def _of_latest_run(self, found: list[tuple[int | None, Path]]) -> list[tuple[int | None, Path]]:
        """Leave out what an earlier run under the same name has left; files of unknown runs stay."""
        metadata = {path: self.short_metadata(path) for _, path in found}
        runs = {path: (_started(known), known.get("ss_session_id")) for path, known in metadata.items()}
        latest = max((run for run in runs.values() if run[1]), default=None, key=lambda run: run[0])
        return [(number, path) for number, path in found if latest is None or runs[path] == latest or not runs[path][1]]


def epoch_file(name: str, epoch: Epoch, files: Sequence[tuple[int | None, Path]]) -> Path:
    """The file of one epoch among a run's, which are in order, the last file last; UserError where there is none."""
    if epoch == "last":
        return files[-1][1]
    matching = [path for number, path in files if number == epoch]
    if not matching:
        there = ", ".join(str(number) for number, _ in files if number is not None) or "none with a number"
        raise UserError(f"{name} has no file of epoch {epoch}: there are {there}, and last")
    return matching[-1]


def _started(metadata: dict[str, str]) -> float:
    try:
        return float(metadata.get("ss_training_started_at", ""))
    except ValueError:
        return 0.0


def _equal_but_for_case(left: str, right: str) -> bool:
    return left.casefold() == right.casefold()
