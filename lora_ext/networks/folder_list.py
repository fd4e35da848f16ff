"""A list of folders in one line of text, as sd-webui-additional-networks takes it."""

from __future__ import annotations

import csv
from pathlib import Path


def parse_folders(text: str) -> list[Path]:
    """The folders of a comma-separated text; one that holds a comma stands in double quotes, a quote in them twice."""
    names = [name.strip() for line in csv.reader(text.splitlines(), skipinitialspace=True) for name in line]
    return list(dict.fromkeys(_expanded(Path(name)).absolute() for name in names if name))


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # ~somebody who is not known here
        return path
