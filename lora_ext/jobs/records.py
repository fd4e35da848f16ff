"""What is known of a run, and how it stands in a file."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

RunState = Literal["queued", "running", "paused", "finished", "stopped", "failed", "crashed"]

ACTIVE_STATES: tuple[RunState, ...] = ("queued", "running", "paused")


@dataclass(frozen=True)
class RunRecord:
    """One run. Times are seconds since 1970, UTC; `files` are the paths of network files, the last one last.

    `dataset`, `plan` and `warnings` are lines for a person; `note` says why a run waits or ended; `error` what
    went wrong. `trial_prompt` is a prompt that shows what was trained. `best_epoch` is the one with the lowest
    loss on held-out pictures, `best_loss`.
    """

    id: str
    name: str
    state: RunState
    created: float
    output_dir: str
    started: float | None = None
    finished: float | None = None
    steps: int = 0
    total_steps: int = 0
    epochs: int = 0
    total_epochs: int = 0
    loss: float | None = None
    files: tuple[str, ...] = ()
    error: str | None = None
    note: str = ""
    dataset: tuple[str, ...] = ()
    plan: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    checkpoint: str = ""
    trial_prompt: str = ""
    best_epoch: int | None = None
    best_loss: float | None = None

    @property
    def active(self) -> bool:
        """Whether the run goes on, is paused or waits for its turn."""
        return self.state in ACTIVE_STATES

    def owns(self, path: Path) -> bool:
        """Whether the run has written this file, or a file of this name may still come from it."""
        place = path.resolve()
        named = re.fullmatch(rf"{re.escape(self.name)}(-\d{{6}}|-step\d{{8}})?", place.stem)
        may_come = named and place.suffix and place.parent == Path(self.output_dir).resolve()
        return bool(may_come) or self.has_written(place)

    def has_written(self, path: Path) -> bool:
        """Whether one of its files is this one, or lies in this folder."""
        place = path.resolve()
        return any(Path(file).resolve().is_relative_to(place) for file in self.files)

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {key: json_value(value) for key, value in dataclasses.asdict(self).items()}


def record_from_json(text: str) -> RunRecord:
    """The record in the text of a `run.json`; ValueError names what is wrong with it."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("it holds no table")
    kept: dict[str, Any] = {}
    for field in dataclasses.fields(RunRecord):
        if field.name in values:
            value = values[field.name]
            kept[field.name] = tuple(value) if isinstance(value, list) else value
    try:
        record = RunRecord(**kept)
    except TypeError as error:
        raise ValueError(f"values are missing: {error}") from error
    _check_values(record)
    return record


def _check_values(record: RunRecord) -> None:
    if record.state not in get_args(RunState):
        raise ValueError(f"there is no state {record.state!r}")
    types: dict[str, type | tuple[type, ...]] = {
        **dict.fromkeys(("id", "name", "output_dir", "note", "checkpoint"), str),
        **dict.fromkeys(("steps", "total_steps", "epochs", "total_epochs"), int),
        **dict.fromkeys(("files", "dataset", "plan", "warnings"), tuple),
        **dict.fromkeys(("started", "finished", "loss", "best_epoch", "best_loss"), (int, float, type(None))),
        "created": (int, float),
    }
    for name, wanted in types.items():
        if not isinstance(getattr(record, name), wanted):
            raise ValueError(f"{name} = {getattr(record, name)!r} has the wrong type")


def json_value(value: Any) -> Any:
    """The value as JSON knows it: tuples as lists, numbers that are not finite as null."""
    if isinstance(value, dict):
        return {str(key): json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
