"""Folders with the state of a run: all that it needs to go on from there as if it had never ended."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError  # type: ignore[attr-defined]
from safetensors.torch import load_file, save
from torch import Tensor

from lora_ext.config.toml_files import config_to_toml, read_config
from lora_ext.config.train_config import TrainConfig, flat_values
from lora_ext.networks.file import read_network, write_network
from lora_ext.protocols import UserError
from lora_ext.training.state_trees import pack, unpack

_FORMAT = 1
_NETWORK, _TENSORS, _VALUES, _SETTINGS = "network.safetensors", "state.safetensors", "state.json", "settings.toml"
_SUFFIX = ".writing"
_PLACE = r"(-\d{6}|-step\d{8})?-state"


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    `epoch` counts from 1, `updates` those of the epoch; `ended`: the epoch is complete, with its file and its report.
    """

    epoch: int
    updates: int
    ended: bool


@dataclass(frozen=True)
class SavedState:
    """A run between two steps.

    `network` holds its tensors by their names in a file, fp32; `losses` has one entry a step; `parts` what the parts
    of the run say of themselves, by name; `facts` what tells whether the same thing is trained on.
    """

    position: Position
    losses: list[float]
    network: Mapping[str, Tensor]
    parts: Mapping[str, Any]
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]


def write_state(folder: Path, state: SavedState, config: TrainConfig, metadata: Mapping[str, str]) -> None:
    """Write a state's folder: whoever looks finds it whole, or as it was before.

    The network in it is a file like any other. What a killed process has left half done under the same output_name is
    deleted. Raises UserError where the folder cannot be written; nothing is left over then.
    """
    temporary = _aside(folder)
    try:
        _delete_leftovers(folder.parent, config.saving.output_name)
        temporary.mkdir(parents=True)
        try:
            _fill(temporary, state, config, metadata)
            _put_in_place(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, UserError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"the state {folder} cannot be written ({cause.strerror or cause}): free some space, or choose another "
            "output folder"
        ) from error


def delete_state(folder: Path) -> None:
    """Delete a state's folder: nobody finds it half there. OSError where that fails."""
    old = _aside(folder)
    os.replace(folder, old)
    shutil.rmtree(old)


def read_state(folder: Path) -> SavedState:
    """Read a state's folder; UserError where there is none, or where it is not whole."""
    if not (folder / _VALUES).is_file():
        raise UserError(f"resume = {folder}: this is no saved state; give the folder of one, such as name-000005-state")
    try:
        values = json.loads((folder / _VALUES).read_text(encoding="utf-8"))
        if values["format"] != _FORMAT:
            raise UserError(
                f"resume = {folder}: this state has format {values['format']}, and this program reads {_FORMAT}: "
                "go on with the program that wrote it"
            )
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / _TENSORS).items()}  # not mapped
        return SavedState(
            position=Position(**values["position"]),
            losses=unpack(values["losses"], tensors),
            network=read_network(folder / _NETWORK).tensors,
            parts=unpack(values["parts"], tensors),
            settings=flat_values(read_config(folder / _SETTINGS)),
            facts=values["facts"],
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"resume = {folder}: this state is damaged ({error}): take an older one") from error


def latest_state(output_dir: Path, output_name: str, written_after: float = 0.0) -> Path | None:
    """The folder of the state of this name that was written last, None where there is none.

    `written_after` (Unix seconds) leaves out those of earlier runs.
    """
    states = []
    for folder in output_dir.glob("*-state") if output_dir.is_dir() else ():
        values = folder / _VALUES
        if re.fullmatch(re.escape(output_name) + _PLACE, folder.name) and values.is_file():
            states.append((values.stat().st_mtime_ns, folder))
    written, newest = max(states, default=(0, None))
    return newest if written >= written_after * 1e9 else None


def _fill(folder: Path, state: SavedState, config: TrainConfig, metadata: Mapping[str, str]) -> None:
    """Write all files of a state and bring them to the disk."""
    tensors: dict[str, Tensor] = {}
    values = {
        "format": _FORMAT,
        "position": asdict(state.position),
        "losses": pack(state.losses, "losses", tensors),
        "parts": pack(state.parts, "parts", tensors),
        "facts": state.facts,
    }
    write_network(folder / _NETWORK, state.network, metadata, "float")
    _write(folder / _TENSORS, save(tensors or {"nothing": torch.zeros(0)}))
    _write(folder / _SETTINGS, config_to_toml(config).encode("utf-8"))
    _write(folder / _VALUES, json.dumps(values, ensure_ascii=False, allow_nan=False).encode("utf-8"))


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Give a complete folder its name, in place of the one that had it."""
    if not folder.exists():
        os.replace(temporary, folder)
        return
    old = _aside(folder)
    os.replace(folder, old)
    try:
        os.replace(temporary, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _aside(folder: Path) -> Path:
    """A name beside a folder's for what is no state, or none any more."""
    return folder.with_name(f"{folder.name}.{secrets.token_hex(4)}{_SUFFIX}")


def _delete_leftovers(parent: Path, output_name: str) -> None:
    pattern = re.compile(re.escape(output_name) + _PLACE + r"\.[0-9a-f]{8}" + re.escape(_SUFFIX))
    for leftover in parent.glob(f"*{_SUFFIX}") if parent.is_dir() else ():
        if leftover.is_dir() and pattern.fullmatch(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)
