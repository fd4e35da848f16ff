"""Settings that a person has kept under a name, as TOML files in a folder beside the runs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ext.config.toml_files import config_to_toml, read_config
from lora_ext.config.train_config import TrainConfig, all_settings, flat_values, make_config
from lora_ext.jobs.registry import write_text_atomically
from lora_ext.protocols import Host, UserError

OF_ONE_RUN = (
    "train_data_dir", "dataset_config", "class_tokens", "reg_data_dir", "conditioning_data_dir", "validation_data_dir",
    "output_name", "output_dir", "resume", "resume_anyway",
)  # fmt: skip
"""What belongs to one training and is no part of a preset: its pictures, its name, where it goes on from."""

_NAME = re.compile(r"[\w][\w .+()-]{0,59}")


class OwnPresets:
    """The presets in a folder, which is made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Names of all presets, sorted."""
        return sorted((path.stem for path in self.folder.glob("*.toml")), key=str.casefold)

    def values(self, name: str) -> dict[str, Any]:
        """The settings of a preset; UserError where there is none of this name or it cannot be read."""
        return without_one_run(flat_values(read_config(self._path(name), whole=False)))

    def save(self, name: str, config: TrainConfig) -> str:
        """Keep the settings under a name, in the place of an earlier preset of this name; returns the name."""
        path = self._path(name)
        known = all_settings()
        general = make_config({each: known[each].default for each in OF_ONE_RUN}, config, whole=False)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text_atomically(path, config_to_toml(general))
        except OSError as error:
            raise UserError(f"the preset cannot be written to {path}: {error.strerror or error}") from error
        return path.stem

    def delete(self, name: str) -> None:
        """Delete a preset; UserError where there is none of this name."""
        path = self._path(name)
        try:
            os.unlink(path)
        except OSError as error:
            raise UserError(f"the preset {path} cannot be deleted: {error.strerror or error}") from error

    def _path(self, name: str) -> Path:
        word = name.strip()
        if not _NAME.fullmatch(word) or word.endswith("."):
            raise UserError(
                f"preset = {name!r}: allowed are letters, digits, spaces and . + ( ) - _, 60 at most, beginning with a "
                "letter or a digit"
            )
        return self.folder / f"{word}.toml"


def presets_folder(host: Host) -> Path:
    """Where a host's own presets lie."""
    return host.folders().runs.parent / "presets"


def without_one_run(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that belong to one training."""
    return {name: value for name, value in values.items() if name not in OF_ONE_RUN}
