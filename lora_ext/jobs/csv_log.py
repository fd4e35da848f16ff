"""A CSV file that grows a line at a time while a run goes on."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO


class CsvLog:
    """Appends rows to a file; each line is handed to the system at once, so a crash loses none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None
        self._columns: list[str] = []

    def append(self, row: Mapping[str, str]) -> None:
        """Write one row; the first one decides the columns, and what later ones leave out stays empty."""
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8", newline="")
            self._columns = list(row)
            self._file.write(",".join(self._columns) + "\n")
        self._file.write(",".join(row.get(column, "") for column in self._columns) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; OSError where the last lines cannot be written."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole lines of a file by column; a last line that is cut off is left out. Empty where there is no file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
