from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_ext.config.train_config import TrainConfig
from lora_ext.jobs import registry as registry_module
from lora_ext.jobs.registry import RunRegistry
from lora_ext.jobs.runner import JobRunner
from lora_ext.jobs.steps_file import StepsFile
from lora_ext.protocols import ConfigError, UserError
from lora_ext.training.loop import TrainingLoop

MakeConfig = Callable[..., TrainConfig]
LONG = 200


@pytest.fixture
def runner(host: Any) -> Iterator[JobRunner]:
    runner = JobRunner(host, RunRegistry(host.folders().runs))
    yield runner
    host.gate.set()
    runner.close(30)


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def names(files: tuple[str, ...]) -> list[str]:
    return [Path(file).name for file in files]


def test_a_run_from_start_to_end(runner: JobRunner, host: Any, run_config: MakeConfig) -> None:
    record = runner.start(run_config())
    assert (record.total_steps, record.total_epochs, record.checkpoint) == (4, 2, "tiny-sd1")
    assert record.dataset[0].startswith("2 pictures")
    final = runner.wait(record.id, 60)
    assert (final.state, final.steps, final.epochs, final.error) == ("finished", 4, 2, None)
    assert names(final.files) == ["cat-000001.safetensors", "cat.safetensors"]
    assert host.noticed == [Path(file) for file in final.files]
    assert final.started is not None and final.finished is not None and final.loss is not None
    assert runner.registry.record(record.id) == final
    assert [step.step for step in runner.registry.steps(record.id)] == [1, 2, 3, 4]
    status = runner.status()
    assert (status.progress, status.active, status.phase) == (1.0, False, "finished")
    assert [saved["is_last"] for saved in status.saved] == [False, True]
    assert json.loads(json.dumps(status.as_json()))["losses"][3][0] == 4


def test_what_is_wrong_is_said_at_once(runner: JobRunner, run_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="output_name is empty"):
        runner.start(run_config(""))
    with pytest.raises(UserError, match="no such folder"):
        runner.start(run_config(train_data_dir="/nowhere/at/all"))
    with pytest.raises(UserError, match="optimizer_type = 'AdamV'"):
        runner.start(run_config(optimizer_type="AdamV"))
    with pytest.raises(UserError, match="mixed_precision = fp16"):
        runner.start(run_config(mixed_precision="fp16"))
    with pytest.raises(ConfigError):
        run_config(network_dim=0)
    assert runner.registry.records() == [] and runner.status().record is None


def test_a_second_run_waits_for_the_first(runner: JobRunner, host: Any, run_config: MakeConfig) -> None:
    host.gate.clear()
    first = runner.start(run_config("first"))
    second = runner.start(run_config("second"))
    third = runner.start(run_config("second"))
    assert second.state == "queued" and second.note == "waits for first to end, then starts by itself"
    assert "replace files of the other second" in third.note
    status = runner.status()
    assert status.record is not None and status.record.id == first.id
    assert [record.id for record in status.queued] == [second.id, third.id]
    host.gate.set()
    assert runner.wait(third.id, 90).state == "finished"
    ended = [runner.registry.record(record.id) for record in (first, second, third)]
    assert [record.state for record in ended] == ["finished"] * 3
    starts = [record.started or 0.0 for record in ended]
    assert starts == sorted(starts) and host.borrows == 3 and not host.lent


def test_stop_keeps_and_cancel_does_not(runner: JobRunner, host: Any, run_config: MakeConfig) -> None:
    for action, files, word in [(runner.stop, ["a.safetensors"], "kept"), (runner.cancel, [], "cancelled")]:
        name = "a" if files else "b"
        record = runner.start(run_config(name, max_train_epochs=LONG, save_every_n_epochs=None))
        until(lambda: len(runner.status().losses) > 1)
        action(record.id)
        final = runner.wait(record.id, 30)
        assert final.state == "stopped" and word in final.note and 0 < final.steps < 2 * LONG
        assert names(final.files) == files
    assert not (host.folders().networks[0] / "b.safetensors").exists() and not host.lent


def test_a_queued_run_is_taken_from_the_queue(runner: JobRunner, host: Any, run_config: MakeConfig) -> None:
    host.gate.clear()
    first, second = runner.start(run_config("first")), runner.start(run_config("second"))
    final = runner.stop(second.id)
    assert (final.state, runner.wait(second.id, 1).state) == ("stopped", "stopped")
    assert runner.status().queued == ()
    host.gate.set()
    assert runner.wait(first.id, 60).state == "finished" and host.borrows == 1


def test_save_now_writes_a_file_and_goes_on(runner: JobRunner, run_config: MakeConfig) -> None:
    record = runner.start(run_config(max_train_epochs=LONG, save_every_n_epochs=None))
    until(lambda: runner.status(record.id).phase == "training")
    runner.save_now(record.id)
    until(lambda: len(runner.status(record.id).saved) == 1)
    assert runner.status(record.id).active
    runner.stop(record.id)
    first, last = names(runner.wait(record.id, 30).files)
    assert first.startswith("cat-step000000") and last == "cat.safetensors"


def test_eta_and_progress_while_it_runs(runner: JobRunner, run_config: MakeConfig) -> None:
    record = runner.start(run_config(max_train_epochs=LONG, save_every_n_epochs=None))
    until(lambda: len(runner.status().losses) > 3)
    status = runner.status()
    assert status.phase == "training" and status.phase_total == 2 * LONG and 0 < status.progress < 1
    assert status.eta_seconds is not None and status.eta_seconds > 0
    assert status.record is not None and status.record.steps >= 4 and set(status.learning_rates) == {"unet"}
    runner.cancel(record.id)
    assert runner.wait(record.id, 30).state == "stopped"


def test_a_failure_is_told_and_the_next_run_starts(
    runner: JobRunner, host: Any, run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*args: object) -> None:
        raise ZeroDivisionError("a bug somewhere")

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "train", explode)
        failed = runner.wait(runner.start(run_config()).id, 30)
    assert failed.state == "failed" and "ZeroDivisionError: a bug somewhere" in (failed.error or "")
    assert "Traceback" in (host.folders().runs / failed.id / "error.txt").read_text(encoding="utf-8")
    assert runner.status(failed.id).messages[-1]["level"] == "error" and not host.lent
    assert runner.wait(runner.start(run_config()).id, 60).state == "finished"


def test_a_dataset_that_vanishes_while_the_run_waits(runner: JobRunner, host: Any, run_config: MakeConfig) -> None:
    host.gate.clear()
    record = runner.start(run_config())
    folder = Path(run_config.__closure__[0].cell_contents)  # type: ignore[attr-defined]
    folder.rename(folder.with_name("elsewhere"))
    host.gate.set()
    failed = runner.wait(record.id, 30)
    assert failed.state == "failed" and "no pictures" in (failed.error or "")
    assert not (host.folders().runs / record.id / "error.txt").exists()


def test_a_host_that_refuses_a_file_does_not_end_the_run(runner: JobRunner, host: Any, run_config: MakeConfig) -> None:
    host.refuses_files = True
    record = runner.start(run_config())
    assert runner.wait(record.id, 60).state == "finished"
    warnings = [m["text"] for m in runner.status(record.id).messages if m["level"] == "warning"]
    assert any("test host refused it: the list of networks is locked" in text for text in warnings)


def test_unknown_and_old_runs(runner: JobRunner, host: Any, run_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="there is no run 'x'"):
        runner.stop("x")
    record = runner.start(run_config())
    runner.wait(record.id, 60)
    later = JobRunner(host, runner.registry)
    assert later.status().record is None
    status = later.status(record.id)
    assert status.record is not None and status.record.state == "finished" and len(status.losses) == 4
    with pytest.raises(UserError, match="is not one of this program: it is finished"):
        later.stop(record.id)


def test_close_ends_everything_and_keeps_the_work(runner: JobRunner, run_config: MakeConfig) -> None:
    first = runner.start(run_config("first", max_train_epochs=LONG, save_every_n_epochs=None))
    second = runner.start(run_config("second"))
    until(lambda: len(runner.status(first.id).losses) > 0)
    runner.close(30)
    assert [runner.registry.record(each.id).state for each in (first, second)] == ["stopped", "stopped"]
    assert names(runner.registry.record(first.id).files) == ["first.safetensors"]


def test_output_dir_of_the_settings_wins(runner: JobRunner, run_config: MakeConfig, tmp_path: Path) -> None:
    record = runner.start(run_config(output_dir=str(tmp_path / "mine"), max_train_epochs=1))
    assert runner.wait(record.id, 60).files == (str(tmp_path / "mine" / "cat.safetensors"),)


def full(*args: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_under_the_registry_does_not_end_a_run(
    runner: JobRunner, host: Any, run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither record nor steps can be written, from the first moment to the end; the network's files can."""
    host.gate.clear()
    with monkeypatch.context() as patch:
        record = runner.start(run_config())
        until(lambda: runner.status(record.id).phase == "waiting for the checkpoint")
        patch.setattr(registry_module, "write_text_atomically", full)
        patch.setattr(StepsFile, "append", full)
        patch.setattr(StepsFile, "close", full)
        host.gate.set()
        final = runner.wait(record.id, 60)
    assert (final.state, final.steps, final.error) == ("finished", 4, None)
    assert names(final.files) == ["cat-000001.safetensors", "cat.safetensors"]
    assert all(Path(file).is_file() for file in final.files)
    messages = [each["text"] for each in runner.status(record.id).messages]
    told = [text for text in messages if "No space left" in text]
    assert len(told) == 1 and f"{record.id} cannot be written (No space left on device)" in told[0]
    assert runner.registry.record(record.id).state == "crashed"  # the lock is free, and the last entry an old one
    assert runner.wait(runner.start(run_config()).id, 60).state == "finished"


def test_a_failure_that_cannot_be_kept_does_not_block_the_queue(
    runner: JobRunner, run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "train", full)
        patch.setattr(registry_module.OpenRun, "write_error", full)
        failed = runner.wait(runner.start(run_config()).id, 30)
    assert failed.state == "failed" and "No space left" in (failed.error or "")
    assert "registry of runs cannot be written" in runner.status(failed.id).messages[-1]["text"]
    assert runner.wait(runner.start(run_config()).id, 60).state == "finished"


def test_stop_while_the_checkpoint_is_lent_elsewhere(runner: JobRunner, host: Any, run_config: MakeConfig) -> None:
    host.gate.clear()
    record = runner.start(run_config())
    until(lambda: runner.status(record.id).phase == "waiting for the checkpoint")
    runner.stop(record.id)
    host.gate.set()
    final = runner.wait(record.id, 30)
    assert (final.state, final.note, final.files) == (
        "stopped", "stopped before the first step; nothing was trained", (),
    )  # fmt: skip
