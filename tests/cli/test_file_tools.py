"""The commands of the file tools, made from what a tool declares."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora_ext.cli import COMMANDS, FILE_TOOLS
from lora_ext.jobs.remaining import duration, seconds_left
from lora_ext.merge.tools import MODULES, tool_named
from lora_ext.networks.file import read_network, write_network
from tests.merge.sample_tool import register

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def scale(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A network `cat` of one tensor in a home."""
    path = tmp_path / "home" / "models" / "Lora" / "cat.safetensors"
    write_network(path, {"lora_unet_a.alpha": torch.tensor(4.0)}, {}, "fp16")
    return path


def alpha(path: Path) -> float:
    return float(read_network(path).tensors["lora_unet_a.alpha"])


def test_every_registered_tool_is_a_command() -> None:
    assert set(FILE_TOOLS) == set(MODULES)
    assert all(COMMANDS[name][0] == "lora_ext.commands.file_tools" for name in FILE_TOOLS)
    assert all(tool_named(name).name == name for name in MODULES)


def test_help_tells_what_is_declared(command: Callable) -> None:
    shown = re.sub(r"\s+", " ", command("scale", "--help").out)
    assert "Multiply a network by a factor." in shown
    assert "FILE The network to scale." in shown
    assert "--factor X 100 % is 1. (a number from 0 to 10; default: 1.0)" in shown
    assert '--conv-rank N For convolutions. (a whole number of at least 1, or "none")' in shown
    assert "--note TEXT [TEXT ...] One a line. (text; may be repeated)" in shown
    assert "--method TEXT Which tensors. (one of all, up; default: all)" in shown
    assert "--overwrite Replace what is there." in shown
    assert "--preview" in shown and "--json" in shown and "--home DIR" in shown


def test_a_tool_by_its_command(command: Callable, network: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    words = (
        "scale",
        "cat",
        "--home",
        tmp_path / "home",
        "--factor",
        "0.5",
        "--note",
        "one",
        "--note",
        "two",
        "--out",
        out,
    )
    before = command(*words, "--conv-rank", 3, "--preview")
    assert (before.code, out.exists()) == (0, False)
    assert before.out.splitlines() == [
        "Scaled", "  Network  cat", "  Notes    one + two", "  Rank     3", f"would write {out} (0.2 KB)",
    ]  # fmt: skip
    assert before.err == "warning: <b>careful</b>\n"
    done = command(*words, "--report")
    assert done.code == 0 and alpha(out) == 2.0
    assert "proj_in       4       2   75.000%" in done.out and f"wrote {out}" in done.out
    again = command(*words)
    assert again.code == 2 and f"{out} is there already" in again.err
    told = json.loads(command(*words, "--overwrite", "--json").out)
    assert told["files"] == [{"path": str(out), "bytes": out.stat().st_size}]
    assert (told["factor"], told["modules"][0]["rank_after"]) == (0.5, 2)


def test_several_values_may_follow_one_option(command: Callable, network: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    done = command("scale", network, "--note", "one", "two", "--note", "three", "--out", out)
    assert done.code == 0 and "Notes    one + two + three" in done.out


def test_checkpoints_have_names_in_a_home(command: Callable, tiny_checkpoint_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "Stable-diffusion"
    folder.mkdir(parents=True)
    shutil.copyfile(tiny_checkpoint_path, folder / "model.safetensors")
    write_network(tmp_path / "cat.safetensors", {"lora_unet_a.alpha": torch.tensor(4.0)}, {}, "fp16")
    for name in ("model", "model.safetensors"):
        done = command("check", tmp_path / "cat.safetensors", "--checkpoint", name, "--home", tmp_path)
        assert "there is no such checkpoint" not in done.err
    done = command("check", tmp_path / "cat.safetensors", "--checkpoint", "other", "--home", tmp_path)
    assert done.code == 2 and "'other': there is no such checkpoint" in done.err


def test_a_path_needs_no_home(command: Callable, network: Path, tmp_path: Path) -> None:
    assert command("scale", network, "--out", tmp_path / "out.safetensors").code == 0


WRONG = {
    "range": (("--factor", "11"), "factor = '11': allowed is a number from 0 to 10"),
    "choice": (("--method", "down"), "method = 'down': allowed is one of all, up"),
    "device": (("--device", "tpu"), "device = 'tpu': allowed is one of auto, cpu, cuda"),
    "no number": (("--conv-rank", "many"), "conv_rank = 'many': allowed is a whole number of at least 1"),
    "own rule": (("--factor", "0"), "nothing would be left"),
    "unknown option": (("--facto", "1"), "unrecognized arguments: --facto 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(command: Callable, network: Path, tmp_path: Path, case: str) -> None:
    words, message = WRONG[case]
    done = command("scale", network, "--out", tmp_path / "out.safetensors", *words)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err
    assert not (tmp_path / "out.safetensors").exists()


def test_an_unknown_network(command: Callable, tmp_path: Path) -> None:
    done = command("scale", "dog", "--home", tmp_path, "--out", tmp_path / "out.safetensors")
    assert done.code == 2 and "'dog': there is no such network" in done.err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals to other processes")
def test_ctrl_c_leaves_nothing_behind(network: Path, tmp_path: Path) -> None:
    program = "import sys\nfrom lora_ext import cli\nfrom lora_ext.merge import tools\n" + (
        "tools.MODULES['scale'] = 'tests.merge.sample_tool'\n"
        "cli.FILE_TOOLS['scale'] = ''\ncli.COMMANDS['scale'] = ('lora_ext.commands.file_tools', 'Scale')\n"
        "sys.exit(cli.main())"
    )
    out = tmp_path / "out" / "slow.safetensors"
    out.parent.mkdir()
    words = ["scale", str(network), "--out", str(out), "--slow"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    work = subprocess.Popen(
        [sys.executable, "-c", program, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert work.stderr is not None and work.stderr.readline() == "at work\n"
    work.send_signal(signal.SIGINT)
    _, told = work.communicate(timeout=60)
    assert work.returncode == 130, told
    assert "Stopped." in told and list(out.parent.iterdir()) == []


def test_the_time_left() -> None:
    assert seconds_left(10.0, 1, 4) == 30.0
    assert seconds_left(0.5, 1, 4) is None and seconds_left(10.0, 0, 4) is None
    assert [duration(each) for each in (0.2, 89, 600, 7260)] == ["1 s", "89 s", "10 min", "2 h 1 min"]
