"""The sample pictures of a run: PNG files with infotext, and a line of JSON about each."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ext.grid.png import infotext_chunk
from lora_ext.protocols import Sample

_INDEX = "samples.jsonl"


@dataclass(frozen=True)
class SavedSample:
    """A sample picture on disk."""

    path: Path
    prompt: str
    prompt_number: int
    epoch: int
    step: int
    seed: int
    infotext: str


class SamplesFolder:
    """Where a run's samples go; the folder is made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, sample: Sample) -> SavedSample:
        """Write a picture, then its line, so that whoever reads the lines finds the pictures; OSError where not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{sample.epoch:06d}-{sample.step:08d}-{sample.prompt_number:02d}-{sample.image.seed}.png"
        path = self.folder / name
        sample.image.image.save(path, "PNG", pnginfo=infotext_chunk(sample.image.infotext))
        saved = SavedSample(
            path, sample.prompt, sample.prompt_number, sample.epoch, sample.step, sample.image.seed,
            sample.image.infotext,
        )  # fmt: skip
        line = {**dataclasses.asdict(saved), "path": name}
        with open(self.folder / _INDEX, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return saved


def read_samples(folder: Path) -> list[SavedSample]:
    """The samples of a run in the order in which they were drawn; a line that a killed program left unfinished, or
    whose picture was deleted, is left out.
    """
    index = folder / _INDEX
    lines = index.read_text(encoding="utf-8", errors="replace").split("\n") if index.is_file() else []
    found = [_sample_of(line, folder) for line in lines if line]
    drawn = {(each.prompt_number, each.epoch, each.step): each for each in found if each is not None}
    return [each for each in drawn.values() if each.path.is_file()]


def _sample_of(line: str, folder: Path) -> SavedSample | None:
    try:
        values: dict[str, Any] = json.loads(line)
        return SavedSample(**{**values, "path": folder / Path(values["path"]).name})
    except (ValueError, TypeError, KeyError):
        return None
