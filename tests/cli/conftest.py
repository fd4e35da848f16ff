"""Pictures to train on, and the command line run in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from lora_ext.cli import main


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A flat folder of two pictures with captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, color in (("one", (200, 30, 30)), ("two", (30, 30, 200))):
        Image.new("RGB", (64, 64), color).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a plain {name}", encoding="utf-8")
    return folder


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run a command line as `python -m lora_ext …` would, argparse's way out included."""

    def run(*argv: object) -> Finished:
        try:
            code = main([str(argument) for argument in argv])
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return run
