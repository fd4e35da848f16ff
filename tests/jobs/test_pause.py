"""Pauses of runs on the real standalone host: pictures meanwhile, the network in training in them, honest records."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_ext.config.toml_files import config_to_toml
from lora_ext.config.train_config import TrainConfig
from lora_ext.jobs.live_status import RunStatus
from lora_ext.jobs.registry import RunRegistry
from lora_ext.jobs.runner import JobRunner
from lora_ext.networks.file import read_network
from lora_ext.protocols import GenerateRequest, UserError
from lora_ext.training.loop import TrainingLoop

if TYPE_CHECKING:
    from lora_ext.host.standalone.host import StandaloneHost

MakeConfig = Callable[..., TrainConfig]
ROOT = Path(__file__).resolve().parents[2]
LIVE = "a cat <lora:cat-live:1>"
LONG: dict[str, Any] = {"max_train_epochs": 200, "save_every_n_epochs": None, "learning_rate": 0.01}


@pytest.fixture
def runner(tiny_host: StandaloneHost) -> Iterator[JobRunner]:
    runner = JobRunner(tiny_host, RunRegistry(tiny_host.folders().runs))
    yield runner
    runner.close(30)


def until(runner: JobRunner, run_id: str, condition: Callable[[RunStatus], bool], seconds: float = 60) -> RunStatus:
    end = time.monotonic() + seconds
    while not condition(status := runner.status(run_id)):
        assert time.monotonic() < end, f"waited in vain: {status.phase}"
        time.sleep(0.01)
    return status


def is_paused(status: RunStatus) -> bool:
    return status.record is not None and status.record.state == "paused"


def pause_after_steps(runner: JobRunner, run_id: str, steps: int = 2) -> RunStatus:
    until(runner, run_id, lambda status: len(status.losses) >= steps)
    runner.pause(run_id)
    return until(runner, run_id, is_paused)


def picture(host: StandaloneHost, prompt: str, messages: int = 0) -> np.ndarray:
    (made,) = host.generate(GenerateRequest(prompt, width=64, height=64, steps=2, seed=5))
    assert len(made.messages) == messages, made.messages
    return np.asarray(made.image)


def test_the_network_in_training_is_usable_while_paused_and_only_then(
    runner: JobRunner, tiny_host: StandaloneHost, run_config: MakeConfig
) -> None:
    bare = picture(tiny_host, "a cat")
    run = runner.start(run_config(save_precision="float", network_train_unet_only=False, **LONG))
    status = pause_after_steps(runner, run.id)
    assert status.record is not None and status.active and status.eta_seconds is None
    assert (status.phase, status.live_network) == ("paused", "cat-live")
    assert f"paused after {status.record.steps} steps" in status.record.note
    until(runner, run.id, lambda _: runner.registry.record(run.id).state == "paused")  # the disk comes after the status
    assert np.array_equal(picture(tiny_host, "a cat"), bare)
    live = picture(tiny_host, LIVE)
    assert not np.array_equal(live, bare)
    networks = tiny_host.folders().networks[0]
    assert not networks.exists() or list(networks.iterdir()) == []
    runner.save_now(run.id)
    saved = until(runner, run.id, lambda status: len(status.saved) == 1).saved[0]
    assert is_paused(runner.status(run.id))
    assert np.array_equal(picture(tiny_host, f"a cat <lora:{Path(saved['path']).stem}:1>"), live)
    assert np.array_equal(picture(tiny_host, LIVE), live)  # stays in the weights when the run goes on

    steps = status.record.steps
    runner.resume(run.id)
    status = until(runner, run.id, lambda status: status.record is not None and status.record.steps > steps + 1)
    assert status.record is not None and (status.record.state, status.record.note) == ("running", "")
    assert (status.live_network, status.phase) == ("", "training") and status.eta_seconds is not None
    pause_after_steps(runner, run.id)
    later = picture(tiny_host, LIVE)
    assert not np.array_equal(later, live)
    runner.stop(run.id)
    final = runner.wait(run.id, 60)
    assert (final.state, len(final.files)) == ("stopped", 2)
    assert np.array_equal(picture(tiny_host, "a cat <lora:cat:1>"), later)
    assert np.array_equal(picture(tiny_host, LIVE, messages=1), bare)
    assert not (tiny_host.folders().runs / run.id / "paused.safetensors").exists()


def test_the_file_is_that_of_a_run_without_pauses(
    runner: JobRunner, tiny_host: StandaloneHost, run_config: MakeConfig
) -> None:
    config = run_config(learning_rate=0.01, max_train_epochs=8, network_train_unet_only=False)
    straight = runner.wait(runner.start(config).id, 60)
    expected = read_network(Path(straight.files[-1])).metadata["sshs_model_hash"]
    run = runner.start(config)
    pause_after_steps(runner, run.id)
    picture(tiny_host, LIVE)
    runner.resume(run.id)
    final = runner.wait(run.id, 60)
    assert (final.state, final.note, final.steps) == ("finished", "", 16)
    assert read_network(Path(final.files[-1])).metadata["sshs_model_hash"] == expected


def test_cancelled_while_paused_nothing_is_left(
    runner: JobRunner, tiny_host: StandaloneHost, run_config: MakeConfig
) -> None:
    run = runner.start(run_config(**LONG))
    pause_after_steps(runner, run.id)
    runner.cancel(run.id)
    final = runner.wait(run.id, 60)
    assert (final.state, final.files) == ("stopped", ()) and "cancelled" in final.note
    assert list(tiny_host.folders().networks[0].iterdir()) == []
    assert not list(tiny_host.folders().runs.rglob("*.safetensors"))


def test_another_checkpoint_meanwhile(
    runner: JobRunner, tiny_host: StandaloneHost, run_config: MakeConfig, tmp_path: Path
) -> None:
    """The run says so and stays paused; told to, it loads its own: the same file, another instance."""
    from lora_ext.host.standalone.random_checkpoint import write_random_checkpoint

    config = run_config(learning_rate=0.01, max_train_epochs=8, network_train_unet_only=False)
    straight = runner.wait(runner.start(config).id, 60)
    own = tiny_host.loaded.checkpoint
    write_random_checkpoint(tmp_path / "other.safetensors", seed=1)
    run = runner.start(config)
    pause_after_steps(runner, run.id)
    tiny_host.load_checkpoint(tmp_path / "other.safetensors")
    elsewhere = picture(tiny_host, "a cat")
    runner.resume(run.id)
    status = until(runner, run.id, lambda status: status.missing_checkpoint != "")
    assert status.record is not None and (status.record.state, status.missing_checkpoint) == ("paused", "tiny-sd1")
    assert "this run trains on tiny-sd1, and now other is loaded: load tiny-sd1 again" in status.record.note
    assert np.array_equal(picture(tiny_host, "a cat"), elsewhere)
    runner.resume(run.id, load_checkpoint=True)
    final = runner.wait(run.id, 60)
    assert final.state == "finished", final.error
    assert tiny_host.loaded.checkpoint.name == "tiny-sd1" and tiny_host.loaded.checkpoint is not own
    hashes = [read_network(Path(record.files[-1])).metadata["sshs_model_hash"] for record in (straight, final)]
    assert hashes[0] == hashes[1]


def test_a_checkpoint_that_is_gone_leaves_the_run_paused(
    runner: JobRunner, tiny_host: StandaloneHost, run_config: MakeConfig, tmp_path: Path
) -> None:
    from lora_ext.host.standalone.random_checkpoint import write_random_checkpoint

    mine, other = tmp_path / "mine.safetensors", tmp_path / "other.safetensors"
    shutil.copyfile(str(tiny_host.loaded.checkpoint.path), mine)
    write_random_checkpoint(other, seed=1)
    tiny_host.load_checkpoint(mine)
    run = runner.start(run_config(**LONG))
    pause_after_steps(runner, run.id)
    tiny_host.load_checkpoint(other)
    mine.unlink()
    runner.resume(run.id, load_checkpoint=True)
    status = until(runner, run.id, lambda status: status.record is not None and "mine" in status.record.note)
    assert is_paused(status)
    runner.stop(run.id)
    assert [Path(file).name for file in runner.wait(run.id, 30).files] == ["cat.safetensors"]


def test_what_cannot_be_paused_or_resumed(runner: JobRunner, run_config: MakeConfig) -> None:
    run, waiting = runner.start(run_config(**LONG)), runner.start(run_config("dog"))
    with pytest.raises(UserError, match="dog is queued: only a run that goes on can be paused"):
        runner.pause(waiting.id)
    pause_after_steps(runner, run.id)
    with pytest.raises(UserError, match="cat is paused: only a run that goes on can be paused"):
        runner.pause(run.id)
    assert [record.name for record in runner.status().queued] == ["dog"]
    runner.stop(run.id)
    runner.wait(run.id, 30)
    with pytest.raises(UserError, match="cat is stopped: only a paused run can be resumed"):
        runner.resume(run.id)


def test_the_program_ends_while_a_run_is_paused(runner: JobRunner, run_config: MakeConfig) -> None:
    run = runner.start(run_config(**LONG))
    pause_after_steps(runner, run.id)
    runner.close(30)
    record = runner.registry.record(run.id)
    assert record.state == "stopped" and [Path(file).name for file in record.files] == ["cat.safetensors"]


def test_a_failure_after_a_pause_names_what_is_left(
    runner: JobRunner, tiny_host: StandaloneHost, run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*args: object) -> None:
        raise ZeroDivisionError("a bug somewhere")

    run = runner.start(run_config(**LONG))
    pause_after_steps(runner, run.id)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_take_step", explode)
        runner.resume(run.id)
        failed = runner.wait(run.id, 30)
    kept = tiny_host.folders().runs / run.id / "paused.safetensors"
    assert (failed.state, failed.note) == ("failed", f"what was trained up to its last pause is in {kept}")
    assert read_network(kept).metadata["ss_output_name"] == "cat-live"
    picture(tiny_host, LIVE, messages=1)


PAUSING = """
import sys, time
from pathlib import Path
from lora_ext.config.toml_files import read_config
from lora_ext.host.standalone.host import StandaloneHost
from lora_ext.jobs.registry import RunRegistry
from lora_ext.jobs.runner import JobRunner
host = StandaloneHost(Path(sys.argv[1]), Path(sys.argv[2]), "cpu", "float32")
runner = JobRunner(host, RunRegistry(host.folders().runs))
run = runner.start(read_config(Path(sys.argv[3]))).id
while not runner.status().losses:
    time.sleep(0.01)
runner.pause(run)
while runner.registry.record(run).state != "paused":
    time.sleep(0.01)
print(run, flush=True)
runner.wait(run)
"""


@pytest.mark.slow
def test_killed_while_paused_the_record_names_the_file(
    tiny_checkpoint_path: Path, run_config: MakeConfig, tmp_path: Path
) -> None:
    settings, home = tmp_path / "settings.toml", tmp_path / "home"
    settings.write_text(config_to_toml(run_config(**LONG)), encoding="utf-8")
    arguments = [sys.executable, "-c", PAUSING, str(tiny_checkpoint_path), str(home), str(settings)]
    registry = RunRegistry(home / "runs")
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            run_id = child.stdout.readline().strip()
            assert registry.record(run_id).state == "paused"
        finally:
            child.kill()
    end = time.monotonic() + 10
    while (record := registry.record(run_id)).state == "paused" and time.monotonic() < end:
        time.sleep(0.1)  # the system takes the lock away a moment after the process is gone
    kept = home / "runs" / run_id / "paused.safetensors"
    assert (record.state, record.note) == ("crashed", "")
    assert record.error == f"The program ended while it was paused; what was trained up to its last pause is in {kept}."
    assert len(read_network(kept).tensors) == 192 * 3
