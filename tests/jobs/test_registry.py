from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_ext.config.toml_files import read_config
from lora_ext.config.train_config import make_config
from lora_ext.jobs import registry as registry_module
from lora_ext.jobs.locking import ProcessLock, is_locked
from lora_ext.jobs.records import RunRecord, record_from_json
from lora_ext.jobs.registry import RunRegistry
from lora_ext.jobs.steps_file import read_steps
from lora_ext.protocols import StepReport, UserError

CONFIG = make_config({"output_name": "Ein Kätzchen", "train_data_dir": "x"})


def report(step: int, loss: float = 0.5) -> StepReport:
    return StepReport(step, 10, 1, 2, loss, {"unet": 1e-4, "text_encoder": 5e-5}, 0.25)


def test_a_run_is_entered_with_its_settings(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path / "runs")
    run = registry.create(CONFIG, tmp_path / "out", total_steps=10)
    assert run.record.id.endswith("-Ein_K_tzchen") and run.record.name == "Ein Kätzchen"
    assert registry.record(run.record.id) == run.record and run.record.state == "queued"
    assert read_config(registry.config_path(run.record.id)) == CONFIG
    run.update(state="finished", loss=math.nan)
    run.close()
    (record,) = registry.records()
    assert (record.state, record.loss, record.total_steps) == ("finished", None, 10)


def test_a_run_that_cannot_be_entered_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(registry_module, "write_text_atomically", full)
        with pytest.raises(UserError, match="cannot be entered in .*No space left on device.: free some space"):
            RunRegistry(tmp_path).create(make_config({"output_name": "cat"}), tmp_path, {"pictures": 3})
    assert list(tmp_path.iterdir()) == []


def test_ids_are_unique_and_the_newest_run_comes_first(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path)
    runs = [registry.create(CONFIG, tmp_path) for _ in range(3)]
    assert len({run.record.id for run in runs}) == 3
    assert [record.id for record in registry.records()] == [run.record.id for run in reversed(runs)]
    for run in runs:
        run.close()


def test_foreign_and_broken_folders_are_left_out_with_a_note(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path)
    registry.create(CONFIG, tmp_path).close()
    (tmp_path / "holiday").mkdir()
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    for name, text in [
        ("20200101-000000-half", '{"id": "20200101-000000-half", "na'),
        ("20200101-000001-list", "[]"),
        ("20200101-000002-poor", '{"id": "20200101-000002-poor"}'),
        ("20200101-000005-type", json.dumps(
            {"id": "20200101-000005-type", "name": "a", "state": "finished", "created": "x", "output_dir": ""}
        )),
        ("20200101-000003-state", json.dumps(
            {"id": "20200101-000003-state", "name": "a", "state": "?", "created": 1.0, "output_dir": ""}
        )),
    ]:  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text, encoding="utf-8")
    (tmp_path / "20200101-000004-empty").mkdir()
    assert len(registry.records()) == 1
    assert len(registry.notes()) == 8
    with pytest.raises(UserError, match="there is no run '\\.\\./x'"):
        registry.record("../x")
    with pytest.raises(UserError, match="20200101-000000-half"):
        registry.record("20200101-000000-half")


def test_a_folder_that_is_not_there_holds_no_runs(tmp_path: Path) -> None:
    assert RunRegistry(tmp_path / "none").records() == []


def test_fields_of_a_later_version_do_not_matter(tmp_path: Path) -> None:
    run = RunRegistry(tmp_path).create(CONFIG, tmp_path)
    values = {**run.record.as_json(), "mood": "good"}
    assert record_from_json(json.dumps(values)) == run.record
    run.close()


def test_steps_are_read_while_they_are_written(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path)
    run = registry.create(CONFIG, tmp_path)
    run.steps.append(report(1))
    run.steps.append(report(2, math.nan))
    path = registry.folder / run.record.id / "steps.csv"
    steps = registry.steps(run.record.id)
    assert [(step.step, step.loss) for step in steps] == [(1, 0.5), (2, None)]
    assert steps[0].learning_rates == {"unet": 1e-4, "text_encoder": 5e-5}
    with path.open("a", encoding="utf-8") as file:
        file.write("3,1,0.")
    assert len(read_steps(path)) == 2
    run.close()


def test_a_lock_is_held_by_one_and_free_after_release(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    lock = ProcessLock(path)
    assert lock.acquire() and is_locked(path)
    assert not ProcessLock(path).acquire()
    lock.release()
    assert not is_locked(path)


CHILD = """
import sys, time
from pathlib import Path
from lora_ext.config.train_config import make_config
from lora_ext.jobs.registry import RunRegistry
from lora_ext.protocols import StepReport
folder = Path(sys.argv[1])
run = RunRegistry(folder).create(make_config({"output_name": "cat", "train_data_dir": "x"}), folder)
saved = folder / "cat-000001.safetensors"
saved.write_bytes(b"whole")
run.update(state=sys.argv[2], files=(str(saved), str(folder / "gone.safetensors")), total_steps=10, steps=1)
for step in (1, 2, 3):
    run.steps.append(StepReport(step, 10, 1, 2, 0.5 / step, {"unet": 1e-4}, 0.1))
print(run.record.id, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("state", "word"), [("running", "while it was training"), ("queued", "before its turn")])
def test_a_killed_process_leaves_an_honest_entry(state: str, word: str, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    registry = RunRegistry(tmp_path)
    arguments = [sys.executable, "-c", CHILD, str(tmp_path), state]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=root) as child:
        try:
            assert child.stdout is not None
            run_id = child.stdout.readline().strip()
            assert registry.record(run_id).state == state
        finally:
            child.kill()
    record = _crashed_record(registry, run_id)
    assert record.state == "crashed" and word in (record.error or "")
    assert [Path(file).name for file in record.files] == ["cat-000001.safetensors"]
    assert (record.steps, record.loss) == (3, pytest.approx(0.5 / 3))


def _crashed_record(registry: RunRegistry, run_id: str) -> RunRecord:
    """The record once the system has taken the lock away, which may be a moment after the process is gone."""
    for _ in range(50):
        record = registry.record(run_id)
        if record.state == "crashed":
            break
        time.sleep(0.1)
    return record
