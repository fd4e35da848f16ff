"""The runner on the real standalone host."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lora_ext.config.toml_files import config_to_toml
from lora_ext.config.train_config import TrainConfig
from lora_ext.jobs.registry import RunRegistry
from lora_ext.jobs.runner import JobRunner
from lora_ext.networks.file import read_network
from lora_ext.protocols import GenerateRequest

if TYPE_CHECKING:
    from lora_ext.host.standalone.host import StandaloneHost

ROOT = Path(__file__).resolve().parents[2]


def picture(host: StandaloneHost, prompt: str) -> np.ndarray:
    (made,) = host.generate(GenerateRequest(prompt, width=64, height=64, steps=2, seed=5))
    assert made.messages == ()
    return np.asarray(made.image)


def test_train_then_use_at_once(tiny_host: StandaloneHost, run_config: Callable[..., TrainConfig]) -> None:
    runner = JobRunner(tiny_host, RunRegistry(tiny_host.folders().runs))
    before = picture(tiny_host, "a cat")
    config = run_config(network_train_unet_only=False, learning_rate=0.01, save_every_n_epochs=None)
    record = runner.wait(runner.start(config).id, 60)
    assert record.state == "finished", record.error
    assert np.array_equal(picture(tiny_host, "a cat"), before)
    assert not np.array_equal(picture(tiny_host, "a cat <lora:cat:1>"), before)
    assert np.array_equal(picture(tiny_host, "a cat <lora:cat:0>"), before)
    assert np.array_equal(picture(tiny_host, "a cat"), before)


def test_training_over_a_network_in_use_starts_from_the_base(
    tiny_host: StandaloneHost, run_config: Callable[..., TrainConfig]
) -> None:
    runner = JobRunner(tiny_host, RunRegistry(tiny_host.folders().runs))
    hashes = []
    for _ in range(2):
        record = runner.wait(runner.start(run_config(learning_rate=0.01)).id, 60)
        hashes.append(read_network(Path(record.files[-1])).metadata["sshs_model_hash"])
        picture(tiny_host, "a cat <lora:cat:1>")  # leaves the network in the weights
    assert hashes[0] == hashes[1]


TRAINING = """
import sys
from pathlib import Path
from lora_ext.config.toml_files import read_config
from lora_ext.host.standalone.host import StandaloneHost
from lora_ext.jobs.registry import RunRegistry
from lora_ext.jobs.runner import JobRunner
host = StandaloneHost(Path(sys.argv[1]), Path(sys.argv[2]), "cpu", "float32")
runner = JobRunner(host, RunRegistry(host.folders().runs))
print(runner.start(read_config(Path(sys.argv[3]))).id, flush=True)
runner.wait(runner.status().record.id)
"""


@pytest.mark.slow
def test_a_killed_training_leaves_whole_files_and_an_honest_entry(
    tiny_checkpoint_path: Path, run_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(config_to_toml(run_config(max_train_epochs=1000)), encoding="utf-8")
    home = tmp_path / "home"
    arguments = [sys.executable, "-c", TRAINING, str(tiny_checkpoint_path), str(home), str(settings)]
    registry = RunRegistry(home / "runs")
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            run_id = child.stdout.readline().strip()
            end = time.monotonic() + 120
            while len(registry.record(run_id).files) < 3 and time.monotonic() < end:
                time.sleep(0.05)
            assert registry.record(run_id).state == "running"
        finally:
            child.kill()
    record = registry.record(run_id)
    assert record.state == "crashed" and "while it was training" in (record.error or "")
    assert len(record.files) >= 3 and record.steps >= 6
    for file in record.files:
        assert len(read_network(Path(file)).tensors) == 192 * 3
