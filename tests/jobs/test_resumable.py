"""Which runs can go on from a state of their own."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from lora_ext.jobs.records import RunRecord
from lora_ext.jobs.resumable import state_to_resume

STARTED = 1_800_000_000.0


def state(folder: Path, name: str, written: float) -> Path:
    values = folder / name / "state.json"
    values.parent.mkdir()
    values.write_text("{}", encoding="utf-8")
    os.utime(values, (written, written))
    return values.parent


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return RunRecord("20270115-080000-cat", "cat", "crashed", STARTED - 60, str(tmp_path), started=STARTED)


@pytest.mark.parametrize("ended", ["crashed", "stopped", "failed"])
def test_the_last_state_of_a_run_that_ended_early(record: RunRecord, tmp_path: Path, ended: str) -> None:
    state(tmp_path, "cat-000001-state", STARTED + 10)
    last = state(tmp_path, "cat-step00000030-state", STARTED + 20)
    state(tmp_path, "cattle-000009-state", STARTED + 30)  # another network's
    assert state_to_resume(dataclasses.replace(record, state=ended)) == str(last)


def test_none_where_there_is_nothing_to_go_on_from(record: RunRecord, tmp_path: Path) -> None:
    assert state_to_resume(record) == ""
    state(tmp_path, "cat-000001-state", STARTED - 10)  # of an earlier run of this name
    assert state_to_resume(record) == ""
    state(tmp_path, "cat-000002-state", STARTED + 10)
    for other in ("running", "paused", "queued", "finished"):
        assert state_to_resume(dataclasses.replace(record, state=other)) == ""
    assert state_to_resume(dataclasses.replace(record, output_dir=str(tmp_path / "gone"))) == ""
