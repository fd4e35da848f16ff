"""Paths in dataset files, which start from the working directory or from the file."""

from __future__ import annotations

import os
from pathlib import Path

from lora_ext.config.given_path import given_path
from lora_ext.protocols import UserError


def is_there(path: Path) -> bool:
    """Whether a file or folder exists; a path that no file system takes does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def path_in_file(text: str, file: Path | None) -> Path:
    """The path that a dataset file names: from the working directory if it is there, else from the file's folder."""
    candidates = _candidates(text, file)
    return next((path for path in candidates if is_there(path)), candidates[-1])


def check_path_in_file(place: str, text: str, file: Path | None) -> None:
    """Raise UserError, saying where was looked, where the path does not exist; `place` says where it is named."""
    candidates = _candidates(text, file)
    if not any(is_there(path) for path in candidates):
        there = " nor ".join(str(path) for path in candidates)
        neither = "neither " if len(candidates) > 1 else "no "
        raise UserError(f"{place} = {text}: there is {neither}{there}: check the spelling, or give the whole path")


def _candidates(text: str, file: Path | None) -> list[Path]:
    path = given_path(text)
    candidates = [Path(os.path.abspath(path))]
    if file is not None and not path.is_absolute():
        candidates.append(Path(os.path.abspath(file.parent / path)))
    return list(dict.fromkeys(candidates))
