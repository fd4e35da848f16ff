"""What a run's folder keeps in numbers: steps, measurements, the report of the pictures, TensorBoard's files."""

from __future__ import annotations

import json
import math
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.jobs.console import TqdmEvents
from lora_ext.jobs.live_status import LiveStatus
from lora_ext.jobs.memory import memory_in_use
from lora_ext.jobs.recording import RecordingEvents
from lora_ext.jobs.records import RunRecord
from lora_ext.jobs.registry import RunRegistry
from lora_ext.jobs.runner import JobRunner
from lora_ext.jobs.steps_file import RunningMean, StepsFile, read_steps
from lora_ext.jobs.tensorboard_log import TensorBoardEvents, check_logs, log_folder
from lora_ext.jobs.validation_file import ValidationFile, read_validations
from lora_ext.protocols import EpochReport, Events, StepReport, UserError, ValidationReport


def step(number: int, loss: float = 0.5, **bands: float) -> StepReport:
    named = {name.replace("to", "-")[1:]: value for name, value in bands.items()}
    return StepReport(number, 4, 1, 2, loss, {"unet": 1e-4, "unet d*lr": 3e-4}, 0.25, named, 2.5)


def measured(number: int, loss: float, best: bool) -> ValidationReport:
    return ValidationReport(number, number // 2, loss, {200: loss / 2, 800: loss * 2}, 1, 0.25, best)


def test_every_number_of_a_step_has_its_column(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    log = StepsFile(path)
    log.append(step(1, 0.5, t0to250=0.25), memory=1.5)
    log.append(step(2, math.nan))
    log.append(step(3, 0.25, t750to1000=0.125, t250to500=0.75), memory=2.0)
    log.close()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == (
        "step,epoch,loss,loss_smoothed,loss_0-250,loss_250-500,loss_500-750,loss_750-1000,lr_unet,lr_unet d*lr,"
        "gradient_norm,memory_gb,seconds"
    )
    assert lines[1] == "1,1,0.5,0.5,0.25,,,,0.0001,0.0003,2.5,1.500,0.2500"
    assert lines[2] == "2,1,nan,0.5,,,,,0.0001,0.0003,2.5,,0.2500"
    first, second, third = read_steps(path)
    assert (first.bands, first.memory, first.learning_rates) == (
        {"0-250": 0.25}, 1.5, {"unet": 1e-4, "unet d*lr": 3e-4},
    )  # fmt: skip
    assert (second.loss, second.bands, second.memory) == (None, {}, None)
    assert third.bands == {"250-500": 0.75, "750-1000": 0.125}


def test_steps_of_earlier_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    path.write_text("step,epoch,loss,lr_unet,seconds\n1,1,0.5,0.0001,0.25\n", encoding="utf-8")
    (only,) = read_steps(path)
    assert (only.loss, only.learning_rates, only.bands, only.memory) == (0.5, {"unet": 1e-4}, {}, None)


def test_a_running_mean_has_no_bias_and_passes_over_what_is_no_number() -> None:
    mean = RunningMean(2)
    assert math.isnan(mean.add(math.nan))
    assert [mean.add(1.0), mean.add(math.inf), mean.add(4.0)] == [1.0, 1.0, 3.0]  # (½·1 + 1·4) / 1½


def test_measurements(tmp_path: Path) -> None:
    path = tmp_path / "validation.csv"
    assert read_validations(path) == []
    log = ValidationFile(path)
    log.append(measured(2, 0.25, best=True))
    log.append(measured(4, 0.5, best=False))
    log.close()
    assert path.read_text(encoding="utf-8").splitlines()[:2] == [
        "step,epoch,loss,loss_200,loss_800,best", "2,1,0.25,0.125,0.5,yes",
    ]  # fmt: skip
    first, second = read_validations(path)
    assert (first.loss, first.by_timestep, first.best) == (0.25, {200: 0.125, 800: 0.5}, True)
    assert (second.step, second.epoch, second.best) == (4, 2, False)


def test_the_system_says_how_much_memory_is_taken() -> None:
    memory = memory_in_use()
    assert memory is None or 0.05 < memory < 100


def test_a_run_keeps_the_report_of_its_pictures(host, run_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    runner = JobRunner(host, RunRegistry(tmp_path / "runs"))
    record = runner.start(run_config(max_train_epochs=1, scale_weight_norms=1.0))
    assert runner.wait(record.id, 60).state == "finished"
    folder = tmp_path / "runs" / record.id
    report = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert (report["pictures"], report["buckets"]) == (2, {"64x64": 2})
    header, epoch = (folder / "epochs.csv").read_text(encoding="utf-8").splitlines()
    assert header == "epoch,step,loss,keys_scaled,average_norm,maximum_norm" and epoch.startswith("1,2,")
    assert [each.memory is not None for each in runner.registry.steps(record.id)] == [sys.platform == "linux"] * 2
    runner.close()


def test_live_numbers_and_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    live = LiveStatus()
    live.step(step(1, 0.5, t0to250=0.25))
    live.step(step(2, 0.5, t0to250=0.25, t500to750=1.0))
    live.validated(measured(2, 0.25, best=True))
    status = live.snapshot(RunRecord("x", "cat", "running", 0.0, ""), ())
    assert (status.validations, status.bands) == (1, {"0-250": 0.25, "500-750": 1.0})
    assert status.as_json()["learning_rates"] == {"unet": 1e-4, "unet d*lr": 3e-4}
    events = TqdmEvents(sys.stdout)
    events.validated(measured(2, 0.25, best=True))
    events.validated(measured(4, 0.5, best=False))
    assert capsys.readouterr().out.splitlines() == [
        "validation after step 2: 0.2500 (the best so far)",
        "validation after step 4: 0.5000 (best is epoch 1: 0.2500)",
    ]


def test_what_is_no_number_is_not_told_to_the_page() -> None:
    """Its script would show nothing at all any more."""
    live = LiveStatus()
    live.step(replace(step(1, math.nan, t0to250=math.nan, t250to500=0.5), learning_rates={"unet d*lr": math.inf}))
    status = live.snapshot(RunRecord("x", "cat", "running", 0.0, ""), ()).as_json()
    assert (status["bands"], status["learning_rates"]) == ({"250-500": 0.5}, {})


def test_a_best_epoch_has_a_loss(tmp_path: Path) -> None:
    run = RunRegistry(tmp_path).create(make_config({"output_name": "cat"}), tmp_path)
    recording = RecordingEvents(run, Events())
    recording.validated(replace(measured(2, math.nan, best=True), best_loss=math.nan))
    assert (run.record.best_epoch, run.record.best_loss) == (None, None)
    recording.validated(measured(4, 0.25, best=True))
    recording.close()
    assert (run.record.best_epoch, run.record.best_loss) == (1, 0.25)


def test_the_time_that_is_left_counts_the_steps_of_this_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on after 1,000 steps, and its first samples took a minute."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    live = LiveStatus()
    live.run_started(1100, 2)
    for number in (1001, 1002, 1003):
        clock[0] += 60.0 if number == 1001 else 2.0
        live.step(replace(step(number), total_steps=1100, seconds=2.0))
    status = live.snapshot(RunRecord("x", "cat", "running", 0.0, ""), ())
    assert (status.seconds_per_step, status.eta_seconds) == (2.0, 194.0)
    live.resumed()
    clock[0] += 600.0
    live.step(replace(step(1004), total_steps=1100, seconds=3.0))
    assert live.snapshot(RunRecord("x", "cat", "running", 0.0, ""), ()).seconds_per_step == 3.0


class Writer:
    """Stands for a summary writer."""

    written: list[tuple[str, float, int]] = []
    fails = False

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if Writer.fails:
            raise OSError("the disk is full")
        Writer.written.append((name, value, step))

    def close(self) -> None:
        pass


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> type[Writer]:
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "written", [])
    monkeypatch.setattr(Writer, "fails", False)
    return Writer


class Told(Events):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, level: str, text: str) -> None:
        self.messages.append(text)


def test_tensorboard_gets_every_number_that_is_one(tensorboard: type[Writer], tmp_path: Path) -> None:
    log = TensorBoardEvents(tmp_path, Events())
    log.step(step(1, math.nan, t0to250=0.25))
    log.epoch(EpochReport(1, 2, 1, 0.5, {"keys_scaled": 3}))
    log.validated(measured(2, 0.25, best=True))
    log.close()
    written = {name: (value, number) for name, value, number in tensorboard.written}
    assert written["lr/unet d*lr"] == (3e-4, 1) and written["loss/timesteps/0-250"] == (0.25, 1)
    assert written["loss/epoch_average"] == (0.5, 1) and written["max_norm/keys_scaled"] == (3, 1)
    assert written["norm/gradient"] == (2.5, 1)
    assert written["loss/validation"] == (0.25, 2) and written["loss/validation/timestep_800"] == (0.5, 2)
    assert "loss/current" not in written


def test_a_full_disk_is_told_once(tensorboard: type[Writer], tmp_path: Path) -> None:
    tensorboard.fails = True
    told = Told()
    log = TensorBoardEvents(tmp_path, told)
    for number in (1, 2):
        log.step(step(number))
    assert told.messages == [f"TensorBoard's files in {tmp_path} cannot be written: the disk is full"]


def test_a_log_that_cannot_be_written_is_refused_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    check_logs(make_config({}))
    for name in ("torch.utils.tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="log_with = tensorboard: neither tensorboard nor tensorboardX is installed"):
        check_logs(make_config({"log_with": "tensorboard"}))


def test_a_log_whose_package_is_broken_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> types.ModuleType:
        raise TypeError("Descriptors cannot be created directly.\nIf this call came from a _pb2.py file, …")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(UserError, match="TypeError: Descriptors cannot be created directly.\\); install"):
        check_logs(make_config({"log_with": "tensorboard"}))


def test_where_tensorboards_files_go(tmp_path: Path) -> None:
    inside = log_folder(make_config({}), tmp_path)
    assert inside.parent == tmp_path / "tensorboard" and inside.name.isdigit()
    chosen = log_folder(make_config({"logging_dir": str(tmp_path / "logs"), "log_prefix": "mine-"}), tmp_path)
    assert chosen.parent == tmp_path / "logs" and chosen.name.startswith("mine-")
