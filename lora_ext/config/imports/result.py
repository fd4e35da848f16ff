"""What came of an import: the settings, and for every name in the source what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PureWindowsPath
from typing import Any, Literal

from lora_ext.config.fields import parse_value
from lora_ext.config.train_config import TrainConfig, all_settings

NoteKind = Literal["mapped", "explained", "lost", "unknown"]
"""A name became a setting · is not needed here, for the reason given · cannot be carried over · means nothing to us."""


@dataclass(frozen=True)
class Note:
    """What became of one name of the source; `setting` is the one that it became."""

    name: str
    kind: NoteKind
    text: str
    setting: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


@dataclass
class Carried:
    """Settings and notes while a source is being read. `base_model` is the checkpoint that the source names."""

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    base_model: str = ""

    def note(self, name: str, kind: NoteKind, text: str) -> None:
        """Write down what became of a name."""
        self.notes.append(Note(name, kind, text))

    def set(self, name: str, setting: str, value: Any, why: str = "") -> None:
        """A name of the source becomes a setting."""
        self.values[setting] = value
        shown = f"{setting} = {shown_value(value)}"
        self.notes.append(Note(name, "mapped", f"{shown}; {why}" if why else shown, setting))

    def drop_what_does_not_fit(self, defaults: Mapping[str, Any]) -> None:
        """Read every value as its setting reads it; one that does not fit goes back to its default, and is lost."""
        for setting, value in list(self.values.items()):
            parsed, problem = parse_value(all_settings()[setting], value)
            if problem is None:
                self.values[setting] = parsed
                continue
            del self.values[setting]
            if setting in defaults:
                self.values[setting] = defaults[setting]
            self.notes = [
                Note(note.name, "lost", problem) if (note.setting, note.kind) == (setting, "mapped") else note
                for note in self.notes
            ]


@dataclass(frozen=True)
class Imported:
    """An imported configuration.

    `values` are the settings that the source sets, with sd-scripts' own defaults for what it leaves out where it is a
    configuration for sd-scripts; `config` is `values` over the configuration that was imported into.
    `base_model` is the checkpoint that the source trains on, as it stands there; empty where it names none.
    """

    format: str
    values: Mapping[str, Any]
    config: TrainConfig
    notes: tuple[Note, ...] = ()
    base_model: str = ""

    def of_kind(self, kind: NoteKind) -> tuple[Note, ...]:
        """The notes of one kind, in the order of the source."""
        return tuple(note for note in self.notes if note.kind == kind)

    def summary(self) -> list[str]:
        """What a person should read: the format, what was lost and what is unknown; counts of the rest."""
        counts = f"{len(self.of_kind('mapped'))} settings taken over, {len(self.of_kind('explained'))} not needed here"
        lines = [f"{self.format}: {counts}"]
        lines += [f"not carried over: {note}" for note in self.of_kind("lost")]
        lines += [f"unknown: {note}" for note in self.of_kind("unknown")]
        return lines

    def base_model_warning(self, loaded: str) -> str | None:
        """Which checkpoint will be used, where it is not the one that the source names; `loaded` is a name or path."""
        if not self.base_model or _stem(self.base_model) == _stem(loaded):
            return None
        return (
            f"these settings were made for {_file_name(self.base_model)}, and {_file_name(loaded)} is loaded: the run "
            "trains on the loaded one; load the other first if you want that"
        )


def shown_value(value: Any) -> str:
    """A value as it would stand in `--set`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).replace("\n", " ")


def _file_name(path: str) -> str:
    return PureWindowsPath(path.strip().rstrip("/\\")).name or path


def _stem(path: str) -> str:
    """A checkpoint's name without folders (of any system), a known extension and the WebUI's `[hash]`."""
    name = _file_name(path.split(" [")[0]).lower()
    for extension in (".safetensors", ".ckpt", ".pt"):
        name = name.removesuffix(extension)
    return name


def joined(values: Iterable[Any]) -> str:
    """Numbers or texts as one text, separated by commas."""
    return ",".join(f"{value:.12g}" if isinstance(value, float) else str(value).strip() for value in values)
