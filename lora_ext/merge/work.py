"""What all file tools share: what they are given, what they tell, and how an output is allowed and written."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lora_ext.checkpoint.text_part import TextPart
from lora_ext.networks.atomic_write import new_folders
from lora_ext.networks.file import (
    PRECISION_DTYPES,
    Content,
    NetworkFile,
    Precision,
    content_of,
    read_network,
    write_network,
)
from lora_ext.networks.weight_delta.products import unused
from lora_ext.networks.weight_delta.stored import is_finite
from lora_ext.protocols import Control, Progress, UserError

_LOKR = ("lokr_w1", "lokr_w2")
_LARGEST = 65504.0  # of fp16

Verdict = Literal["", "healthy", "damaged", "doubtful"]

PRECISIONS: dict[str, Precision] = {"fp32": "float", "fp16": "fp16", "bf16": "bf16"}
"""Names of `--precision`, and those of the writer of network files."""

DTYPES = {name: PRECISION_DTYPES[precision] for name, precision in PRECISIONS.items()}
"""What the numbers are stored in, by the names of `--precision`."""

AS_STORED = "as stored"
"""The precision of what is written is that of (the first of) what was read."""


def _by_path(text: str) -> Path | None:
    path = Path(text)
    return path if path.is_file() else None


def _no_text_part(text: str) -> AbstractContextManager[TextPart]:
    raise UserError(f"{text or 'checkpoint'}: text encoders cannot be opened here; use the command line or the tab")


@dataclass(frozen=True)
class Work:
    """What a tool is given beside its settings; raises `Cancelled` out of `step` when it was told to stop.

    `find_network` and `find_checkpoint` tell the file that a name or a path stands for, None where there is none.
    `open_text` gives the text encoders of a checkpoint by its name, for the length of a block. With `maps_files`
    networks are not read into memory (see `read_tensors`).
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Control = field(default_factory=Control)
    progress: Progress | None = None
    find_network: Callable[[str], Path | None] = _by_path
    find_checkpoint: Callable[[str], Path | None] = _by_path
    open_text: Callable[[str], AbstractContextManager[TextPart]] = _no_text_part
    maps_files: bool = False

    def read_network(self, path: Path) -> NetworkFile:
        """A network's file; raises UserError as `networks.file.read_network` does."""
        return read_network(path, self.maps_files)

    def network(self, text: str) -> Path:
        """The file of a network by its name or path; UserError where there is none."""
        return _found(self.find_network(text.strip()), text, "network", "one of the folders of networks")

    def checkpoint(self, text: str) -> Path:
        """The file of a checkpoint by its name or path; UserError where there is none."""
        return _found(self.find_checkpoint(text.strip()), text, "checkpoint", "the folder of checkpoints")

    def step(self, done: int, total: int) -> None:
        """`done` of `total` parts are done; the place where long work ends when it was told to."""
        self.control.raise_if_stopping()
        if self.progress is not None:
            self.progress(done, total)


@dataclass(frozen=True)
class ModuleReport:
    """What becomes of one module: its rank before and after, and the share of ‖ΔW‖² that is kept (None: unknown).

    `singular_values` are those of ΔW before, the largest first, in fp32; None where nobody asked for them.
    """

    key: str
    rank_before: int | None = None
    rank_after: int | None = None
    kept: float | None = None
    singular_values: Tensor | None = None


@dataclass(frozen=True)
class OutputFile:
    """A file that is written, or would be: where, and how many bytes it has or is going to have."""

    path: Path
    size: int

    @property
    def shown_size(self) -> str:
        """Its size as people read it."""
        return f"{self.size / 1e6:,.1f} MB" if self.size >= 100_000 else f"{self.size / 1e3:,.1f} KB"


@dataclass(frozen=True)
class ToolReport:
    """What a tool found, and what it wrote or, in a preview, would write.

    `facts` are words by label, in the order in which they are shown; `warnings` what a person should know first.
    """

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    modules: Sequence[ModuleReport] = ()
    warnings: Sequence[str] = ()
    files: Sequence[OutputFile] = ()
    verdict: Verdict = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    """More, for programs: JSON values."""

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values, singular values left out; None for what is infinite or no number."""
        modules = [
            {"module": each.key, "rank_before": each.rank_before, "rank_after": each.rank_after, "kept": each.kept}
            for each in self.modules
        ]
        files = [{"path": str(each.path), "bytes": each.size} for each in self.files]
        found: dict[str, Any] = {
            "title": self.title,
            "verdict": self.verdict,
            "facts": dict(self.facts),
            "warnings": list(self.warnings),
            "modules": modules,
            "files": files,
            **self.details,
        }
        return {name: _as_json(value) for name, value in found.items()}


def check_output(out: Path, inputs: Iterable[Path], overwrite: bool, needed_bytes: int = 0) -> Path:
    """The path of a safetensors file that may be written; UserError, before any work, where it may not.

    It is none of the inputs, is no folder, and does not exist unless `overwrite`; its disk has room.
    """
    try:
        _check_output(out, inputs, overwrite, needed_bytes)
    except OSError as error:  # a name that is too long, or a folder that may not be looked into
        raise UserError(f"{out} cannot be written ({error.strerror or error}): give another name or folder") from error
    return out


@contextlib.contextmanager
def all_or_none(outputs: Iterable[Path]) -> Iterator[None]:
    """Take the outputs away that were not there before, with the folders made for them, where the block is stopped or
    fails between two of them.
    """
    new = [path for path in outputs if not path.exists()]
    with new_folders(path.parent for path in new):
        try:
            yield
        except BaseException:
            for path in new:
                with contextlib.suppress(OSError):  # it is not there, or held: what went wrong first is what is told
                    path.unlink()
            raise


def write_result(
    out: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    precision: Precision,
    work: Work,
    content: Content | None = None,
) -> OutputFile:
    """Write a network file at once, whole or not at all, unless the work was told to stop; hashes are computed anew.

    With `content` shapes suffice for the tensors that are no alphas, as with `write_network`.
    UserError where a value is infinite or no number: a network with such a value makes black pictures.
    """
    work.control.raise_if_stopping()
    harmless = _without_meaning(tensors)

    def checked(names: Sequence[str]) -> Iterator[Tensor]:
        for name, tensor in zip(names, (content or content_of(tensors))(names), strict=True):
            tensor = harmless.get(name, tensor)
            if tensor.is_floating_point() and not is_finite(tensor):
                raise UserError(
                    f"{name} would have values in {out.name} that are infinite or no numbers: an input is damaged, or "
                    "its numbers are too large; check the inputs (check FILE), and repair them or take others"
                )
            yield tensor

    write_network(out, tensors, metadata, precision, checked)
    return OutputFile(out, out.stat().st_size)


def _without_meaning(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ones for the alphas that mean nothing and that half precision cannot hold: some trainers write 10¹⁰ there."""
    found = {}
    for name, alpha in tensors.items():
        module, _, suffix = name.rpartition(".")
        if suffix == "alpha" and unused({each for each in _LOKR if f"{module}.{each}" in tensors}):
            is_small = bool((alpha.float().abs() <= _LARGEST).all())
            found[name] = alpha if is_small else torch.ones_like(alpha)
    return found


def precision_of(name: str, tensors: Mapping[str, Tensor]) -> Precision:
    """The writer's precision for a `--precision`; `AS_STORED` is that of the tensors, fp32 where they differ."""
    if name != AS_STORED:
        return PRECISIONS[name]
    found = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point() and tensor.ndim > 0}
    if found == {torch.float16}:
        return "fp16"
    return "bf16" if found == {torch.bfloat16} else "float"


def _as_json(value: Any) -> Any:
    """A value in which JSON has a word for every number: browsers read no other."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _as_json(each) for name, each in value.items()}
    return [_as_json(each) for each in value] if isinstance(value, list | tuple) else value


def _found(path: Path | None, text: str, what: str, where: str) -> Path:
    if not text.strip():
        raise UserError(f"no {what} is given: give the path of its file, or the name of one in {where}")
    if path is None:
        raise UserError(f"{text!r}: there is no such {what}; give the path of its file, or the name of one in {where}")
    return path


def _is_same(left: Path, right: Path) -> bool:
    try:
        return left.samefile(right)
    except OSError:  # one of them does not exist
        return os.path.normcase(left.absolute()) == os.path.normcase(right.absolute())


def _check_output(out: Path, inputs: Iterable[Path], overwrite: bool, needed_bytes: int) -> None:
    if out.suffix.lower() != ".safetensors":
        raise UserError(f"{out}: files are written as .safetensors; give a name that ends with it")
    for each in inputs:
        if _is_same(out, each):
            raise UserError(f"{out} is read and would be written over: give the output another name")
    if out.is_dir():
        raise UserError(f"{out} is a folder: give the name of a file in it")
    if out.exists() and not overwrite:
        raise UserError(f"{out} is there already: give another name, or allow overwriting it (--overwrite)")
    folder = _existing_parent(out)
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, and {out} would have to lie in it: give another folder")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to: choose another folder, or free this one")
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise UserError(
            f"{out} takes about {needed_bytes / 1e6:,.0f} MB, and {folder} has {free / 1e6:,.0f} MB left: free some "
            "space, or choose another folder"
        )


def _existing_parent(path: Path) -> Path:
    folder = path.absolute().parent
    while not folder.exists():
        if folder == folder.parent:  # a drive of Windows that is not there
            raise UserError(f"{path}: there is no {folder}: choose another folder")
        folder = folder.parent
    return folder
