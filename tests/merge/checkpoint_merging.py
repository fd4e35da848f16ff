"""Merging into tiny checkpoints, for tests of what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from algorithm_files import write_algorithm
from torch import Tensor

from lora_ext.checkpoint.file_weights import open_checkpoint_file
from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import ToolReport, Work

TOOL = tool_named("merge-checkpoint")
KindPath = Callable[[str], Path]


def run(work: Work | None = None, **values: Any) -> ToolReport:
    return TOOL.run(make_settings(TOOL, values), work or Work())


def write(folder: Path, base: Path, algorithm: str = "LoCon", name: str = "net", seed: int = 1) -> Path:
    path = folder / f"{name}.safetensors"
    file = open_checkpoint_file(base)
    assert write_algorithm(path, algorithm, dict(file.values(set(file.weights))), seed) > 20
    return path


def different(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> set[str]:
    assert left.keys() == right.keys()
    return {key for key in left if not torch.equal(left[key], right[key])}
