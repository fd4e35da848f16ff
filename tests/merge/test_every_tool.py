"""What holds for every tool: what it may write and where, what it leaves behind, and that it can be told to stop."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lora_ext.checkpoint.safetensors_file import read_tensors
from lora_ext.checkpoint.tensor_files import open_tensor_file
from lora_ext.merge import memory
from lora_ext.merge.tools import MODULES
from lora_ext.merge.work import Work, check_output
from lora_ext.networks import atomic_write
from lora_ext.protocols import Cancelled, Control, UserError
from tests.merge.tool_cases import (
    CASES,
    ELSEWHERE,
    PRESENT,
    TO_ONE_FILE,
    WRITING,
    Inputs,
    ToolCase,
    difference,
    expected_deltas,
    result_deltas,
)

every_case = pytest.mark.parametrize("case", PRESENT, ids=str)
every_writing = pytest.mark.parametrize("case", WRITING, ids=str)
to_one_file = pytest.mark.parametrize("case", TO_ONE_FILE, ids=str)
MOST_STEPS = 8


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and its content, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_tool_is_tried() -> None:
    assert set(MODULES) == {case.tool for case in CASES} | set(ELSEWHERE)


@every_case
def test_inputs_stay_and_the_report_tells_what_was_written(case: ToolCase, inputs: Inputs) -> None:
    before = contents(inputs.folder)
    report = case.run(inputs)
    after = contents(inputs.folder)
    assert {name: after[name] for name in before} == before
    written = {name: len(content) for name, content in after.items() if name not in before}
    told = {each.path.name: each.size for each in report.files}
    assert written == told
    assert bool(written) == case.writes


@pytest.mark.parametrize("case", [case for case in WRITING if case.tolerance is not None], ids=str)
def test_the_result_is_what_the_definition_says(case: ToolCase, inputs: Inputs) -> None:
    expected = expected_deltas(case, inputs)
    case.run(inputs)
    found = result_deltas(case, inputs)
    assert case.tolerance is not None
    assert difference(found, expected) < case.tolerance


@every_writing
def test_a_preview_writes_nothing_and_tells_the_size(case: ToolCase, inputs: Inputs) -> None:
    before = contents(inputs.folder)
    previewed = case.preview(inputs)
    assert contents(inputs.folder) == before
    written = case.run(inputs)
    assert [each.path for each in previewed.files] == [each.path for each in written.files]
    for announced, each in zip(previewed.files, written.files, strict=True):
        header = 6000 + 200 * len(open_tensor_file(each.path).shapes)
        assert announced.size == pytest.approx(each.size, rel=0.02, abs=header)


def hard_linked(path: Path, folder: Path) -> Path:
    """Another name of the same file."""
    other = folder / "linked.safetensors"
    os.link(path, other)
    return other


def soft_linked(path: Path, folder: Path) -> Path:
    """A link to the file."""
    other = folder / "link.safetensors"
    other.symlink_to(path)
    return other


SPELLINGS: dict[str, Callable[[Path, Path], Path]] = {
    "its own path": lambda path, folder: path,
    "through another folder": lambda path, folder: folder / "sub" / ".." / path.name,
    "a hard link": hard_linked,
    "in other letters": lambda path, folder: path.with_name(path.name.upper().replace("SAFETENSORS", "safetensors")),
}
if sys.platform != "win32":  # links need a privilege there
    SPELLINGS["a link"] = soft_linked


@pytest.mark.parametrize("spelling", SPELLINGS)
@to_one_file
def test_an_input_is_never_the_output(case: ToolCase, inputs: Inputs, spelling: str) -> None:
    (inputs.folder / "sub").mkdir()
    for number, name in enumerate(case.reads):
        folder = inputs.folder / f"links{number}"
        folder.mkdir()
        path: Path = getattr(inputs, name)
        out = SPELLINGS[spelling](path, folder)
        if not out.exists():
            continue  # where capital letters make another file
        before = contents(inputs.folder)
        with pytest.raises(UserError, match=r"would be written over|cannot be"):
            case.run(inputs, out=str(out), overwrite=True)
        assert contents(inputs.folder) == before


@to_one_file
def test_a_file_is_replaced_only_when_told_to(case: ToolCase, inputs: Inputs) -> None:
    inputs.out.write_bytes(b"somebody's work")
    before = contents(inputs.folder)
    with pytest.raises(UserError, match=r"out\.safetensors is there already.*--overwrite"):
        case.run(inputs)
    assert contents(inputs.folder) == before
    report = case.run(inputs, overwrite=True)
    assert [each.path for each in report.files] == [inputs.out]
    assert inputs.out.read_bytes() != b"somebody's work"


@to_one_file
@pytest.mark.parametrize("name", ["out.ckpt", "out", "out.safetensors.txt", "folder.safetensors", ""])
def test_other_outputs_are_refused_in_words(case: ToolCase, inputs: Inputs, name: str) -> None:
    (inputs.folder / "folder.safetensors").mkdir()
    before = contents(inputs.folder)
    with pytest.raises(UserError, match="safetensors|output|--out|out ="):
        case.run(inputs, out=str(inputs.folder / name) if name else "", overwrite=True)
    assert contents(inputs.folder) == before


@every_writing
def test_a_folder_without_permission_is_refused_in_words(
    case: ToolCase, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(inputs.folder)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(UserError, match="cannot be written to: choose another folder"):
        case.run(inputs)
    assert contents(inputs.folder) == before


@every_writing
def test_a_disk_without_room_is_refused_before_the_work(
    case: ToolCase, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(inputs.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"takes about .* MB, and .* has 0 MB left: free some space"):
        case.run(inputs)
    assert contents(inputs.folder) == before


def test_a_name_that_is_too_long_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written .*give another name"):
        check_output(tmp_path / f"{'x' * 300}.safetensors", [], overwrite=False)


def test_a_drive_that_is_not_there_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)  # as of Z: on Windows, which is its own parent
    with pytest.raises(UserError, match="there is no .*choose another folder"):
        check_output(tmp_path / "out.safetensors", [], overwrite=False)


@to_one_file
@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        ("fsync", OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        ("replace", PermissionError(errno.EACCES, "The process cannot access the file"), "close programs that hold"),
    ],
)
def test_what_fails_in_writing_is_told_in_words_and_leaves_nothing(
    case: ToolCase, inputs: Inputs, monkeypatch: pytest.MonkeyPatch, step: str, error: OSError, words: str
) -> None:
    """A disk that fills up meanwhile, and on Windows an output that another program holds."""
    inputs.out.write_bytes(b"somebody's work")
    before = contents(inputs.folder)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(atomic_write.os, step, fail)
    with pytest.raises(UserError, match=rf"out\.safetensors cannot be written.*{words}"):
        case.run(inputs, overwrite=True)
    assert contents(inputs.folder) == before


@every_writing
def test_memory_that_does_not_suffice_is_told_before_the_work(
    case: ToolCase, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(inputs.folder)
    monkeypatch.setattr(memory, "available_memory", lambda device=None: 1000)
    with pytest.raises(UserError, match=r"takes about .* MB of memory, and 0 MB are left"):
        case.run(inputs)
    assert contents(inputs.folder) == before


def stopping_at(number: int) -> tuple[Work, list[tuple[int, int]]]:
    """Work that is told to stop at its n-th step, and the steps that it has come to."""
    steps: list[tuple[int, int]] = []
    control = Control()

    def progress(done: int, total: int) -> None:
        steps.append((done, total))
        if len(steps) == number:
            control.cancel()

    return Work(control=control, progress=progress), steps


@to_one_file
def test_a_tool_that_is_told_to_stop_leaves_nothing(case: ToolCase, inputs: Inputs) -> None:
    work, steps = stopping_at(0)
    case.run(inputs, work)
    inputs.out.unlink()
    before = contents(inputs.folder)
    assert len(steps) >= 2
    assert all(0 <= done <= total for done, total in steps)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    last = len(steps) if steps[-1][0] == steps[-1][1] else len(steps) + 1
    for number in {1, *(1 + last * part // MOST_STEPS for part in range(MOST_STEPS))} & set(range(1, last)):
        work, _ = stopping_at(number)
        with pytest.raises(Cancelled):
            case.run(inputs, work)
        assert contents(inputs.folder) == before, f"step {number} of {len(steps)}"


@every_case
def test_work_that_was_stopped_before_it_began_does_nothing(case: ToolCase, inputs: Inputs) -> None:
    before = contents(inputs.folder)
    work, _ = stopping_at(0)
    work.control.cancel()
    if case.writes:
        with pytest.raises(Cancelled):
            case.run(inputs, work)
    assert contents(inputs.folder) == before


@to_one_file
def test_the_same_work_gives_the_same_file(case: ToolCase, inputs: Inputs) -> None:
    case.run(inputs)
    tensors, metadata = read_tensors(inputs.out)
    torch.rand(3)  # whatever else the program draws
    case.run(inputs, overwrite=True)
    again, metadata_again = read_tensors(inputs.out)
    assert list(again) == list(tensors)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    when = {"modelspec.date"}
    assert {**metadata_again, **dict.fromkeys(when, "")} == {**metadata, **dict.fromkeys(when, "")}
