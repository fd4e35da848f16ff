"""A run that is killed twice, once in the middle of writing a state, and gone on with comes to the very same file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.toml_files import config_to_toml
from lora_ext.config.train_config import TrainConfig
from lora_ext.networks.file import read_network
from lora_ext.training.state_folders import latest_state
from lora_ext.training.trainer import Trainer

SCRIPT = """\
import os, signal, sys
from pathlib import Path

import torch

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.toml_files import read_config
from lora_ext.host.standalone.loader import load_checkpoint
from lora_ext.protocols import Events
from lora_ext.training import state_folders
from lora_ext.training.trainer import Trainer

torch.set_num_threads(1)
checkpoint, settings, output, dies_at, dies_in = sys.argv[1:]


def die():
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


class Dying(Events):
    def step(self, report):
        if report.step == int(dies_at):
            die()


def write(path, content, write=state_folders._write):
    if path.name == "state.json" and path.parent.name.startswith(dies_in):
        path.write_bytes(content[: len(content) // 2])
        die()
    write(path, content)


if dies_in:
    state_folders._write = write
loaded = load_checkpoint(Path(checkpoint), torch.device("cpu"), torch.float32).checkpoint
torch.manual_seed(os.getpid())  # nothing depends on what the program has drawn before
Trainer(loaded, read_config(Path(settings)), Path(output), Dying()).run()
"""


@pytest.mark.slow
def test_killed_twice_and_gone_on_with(
    checkpoint: Checkpoint, tiny_checkpoint_path: Path, small_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    values = {
        "max_train_epochs": 3, "gradient_accumulation_steps": 2, "lr_scheduler": "cosine", "lr_warmup_steps": 2,
        "shuffle_caption": True, "flip_aug": True, "network_dropout": 0.1, "rank_dropout": 0.1, "module_dropout": 0.1,
        "caption_dropout_rate": 0.2, "gradient_checkpointing": True, "save_state": True, "save_every_n_steps": 1,
    }  # fmt: skip

    def train(resume: str = "", dies_at: int = 0, dies_in: str = "") -> int:
        settings = tmp_path / "settings.toml"
        settings.write_text(config_to_toml(small_config(**values, resume=resume)), encoding="utf-8")
        command = [sys.executable, "-c", SCRIPT, str(tiny_checkpoint_path), str(settings), str(out)]
        root = Path(__file__).resolve().parents[2]
        return subprocess.run([*command, str(dies_at), dies_in], cwd=root, timeout=300).returncode

    out = tmp_path / "parts"
    assert train(dies_at=2) != 0  # in the epoch's last window; the last state is of the step before
    assert latest_state(out, "cat") == out / "cat-step00000001-state"
    assert train(resume="latest", dies_in="cat-step00000005-state") != 0
    half = [path.name for path in out.iterdir() if path.name.endswith(".writing")]
    assert len(half) == 1 and half[0].startswith("cat-step00000005-state.")
    assert latest_state(out, "cat") == out / "cat-000002-state"
    assert train(resume="latest") == 0
    Trainer(checkpoint, small_config(**values), tmp_path / "whole").run()
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())
    for name in ("cat.safetensors", "cat-000002.safetensors", "cat-step00000005.safetensors"):
        hashes = [read_network(tmp_path / run / name).metadata["sshs_model_hash"] for run in ("whole", "parts")]
        assert hashes[0] == hashes[1], name
    states = [json.loads((tmp_path / run / "cat-state" / "state.json").read_bytes()) for run in ("whole", "parts")]
    assert states[0]["losses"] == states[1]["losses"] and len(states[0]["losses"]) == 6
