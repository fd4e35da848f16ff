"""The comparison of the file tools: how it measures, what it tells, and its inputs, without the other programs."""

from __future__ import annotations

import math
import mmap
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.file_tools.compare import largest_difference, ranks
from benchmarks.file_tools.context import Context
from benchmarks.file_tools.figures import Figure, Side, beyond, table, too_large, too_slow
from benchmarks.file_tools.inputs import module_sizes, write_random_network
from benchmarks.file_tools.timed import anonymous_bytes, timed

SCRIPT = """
import argparse
from neighbour import FACTOR
LIMIT = 1

def setup_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    parser.add_argument("--number", type=int)
    return parser

def work(args):
    open(args.out, "w").write(f"{args.number * FACTOR} {LIMIT}")

def spread(out, number):
    open(out, "w").write(f"spread {number}")

def fail(args):
    raise ValueError("no such thing")
"""


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """Another program of one script and its neighbour, run by this interpreter."""
    program = tmp_path / "program"
    program.mkdir()
    (program / "script.py").write_text(SCRIPT, encoding="utf-8")
    (program / "neighbour.py").write_text("FACTOR = 3\n", encoding="utf-8")
    return Context(tmp_path, program, Path(sys.executable), threads=1)


@pytest.mark.slow
def test_their_functions_are_called_as_their_scripts_do(context: Context, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    side = context.sd_scripts_run("script.py", "work", ["--out", str(out), "--number", "5"], {"LIMIT": 7})
    assert out.read_text(encoding="utf-8") == "15 7"
    assert 0 < side.seconds < 5
    context.sd_scripts_run("script.py", "spread", ["--out", str(out), "--number", "5"])
    assert out.read_text(encoding="utf-8") == "spread 5"
    with pytest.raises(RuntimeError, match="no such thing"):
        context.sd_scripts_run("script.py", "fail", [])


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from Linux")
def test_memory_is_what_the_operation_takes_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = threading.Event()

    def look() -> int:
        found = anonymous_bytes()
        looked.set()
        return found

    def work() -> None:
        taken = mmap.mmap(-1, 60_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # new memory, not what is left
        for begin in range(0, len(taken), 4096):
            taken[begin] = 1
        for _ in range(2):  # the first look may have begun before
            looked.clear()
            assert looked.wait(60)
        taken.close()

    monkeypatch.setattr("benchmarks.file_tools.timed.anonymous_bytes", look)

    found = timed(work)
    assert 50 < found["anonymous_mb"] < 90
    assert found["seconds"] > 0


def test_what_is_missed_is_told_in_words() -> None:
    assert beyond({"ΔW": 2e-4, "ranks": 0.0}, {"ΔW": 1e-4, "ranks": 0.0}) == ["ΔW is 0.0002, at most 0.0001"]
    assert beyond({"ΔW": math.nan}, {"ΔW": 1.0}) == ["ΔW is nan, at most 1"]
    ours, theirs = Side(2.0, 300.0), Side(100.0, 500.0)
    assert too_slow(ours, theirs, 50) == []
    assert too_slow(ours, theirs, 60) == ["50.0 times as fast, at least 60"]
    assert too_large(ours, theirs, 0.6) == []
    assert too_large(ours, theirs, 0.5) == ["0.60 of their memory, at most 0.5"]


def test_the_table() -> None:
    figures = [
        Figure("resize", "to 32", Side(0.5, 100.0, 1.0), Side(50.0, 1500.0, 90.0), {"ΔW": 3e-6}, ["too slow"]),
        Figure("check", "one", Side(0.25, 20.0)),
    ]
    lines = [line.split() for line in table(figures).splitlines()]
    assert lines[1:] == [
        ["resize", "to", "32", "0.50", "50.00", "100.0", "90.0", "100", "1,500"],
        ["ΔW:", "3e-06"],
        ["MISSED:", "too", "slow"],
        ["check", "one", "0.25", "20"],
    ]


@pytest.mark.parametrize(("kind", "count"), [("sd1_lora", 264), ("sd1_locon", 350), ("sdxl_lora", 986)])
def test_networks_have_the_modules_of_sd_scripts(kind: str, count: int) -> None:
    assert len(module_sizes(kind)) == count
    assert len(module_sizes(kind, 20)) == 20


def test_networks_are_drawn_by_their_seed(tmp_path: Path) -> None:
    one = write_random_network(tmp_path / "one.safetensors", "sd1_locon", 4, alpha=2, seed=1, modules=6)
    same = write_random_network(tmp_path / "same.safetensors", "sd1_locon", 4, alpha=2, seed=1, modules=6)
    other = write_random_network(tmp_path / "other.safetensors", "sd1_locon", 4, alpha=2, seed=2, modules=6)
    assert all(torch.equal(tensor, load_file(same)[name]) for name, tensor in load_file(one).items())
    assert set(ranks(one).values()) == {4}
    assert largest_difference(one, same) == 0.0
    assert largest_difference(one, other) > 1.0
    tensors = load_file(one)
    for key in ranks(one):
        up, down = (tensors[f"{key}.lora_{name}.weight"].flatten(1).double() for name in ("up", "down"))
        assert 0.5 * float((up @ down).norm()) == pytest.approx(0.5, rel=0.5)  # alpha / rank is a half


def test_a_changed_module_is_seen(tmp_path: Path) -> None:
    one = write_random_network(tmp_path / "one.safetensors", "sd1_lora", 2, modules=4)
    tensors = load_file(one)
    name = next(name for name in tensors if name.endswith("lora_up.weight"))
    save_file({**tensors, name: tensors[name] * 1.001}, tmp_path / "other.safetensors")
    assert largest_difference(tmp_path / "other.safetensors", one) == pytest.approx(1e-3, rel=1e-3)
    fewer = {key: value for key, value in tensors.items() if not key.startswith(name.split(".")[0])}
    save_file(fewer, tmp_path / "fewer.safetensors")
    with pytest.raises(ValueError, match="1 modules are in one of"):
        largest_difference(one, tmp_path / "fewer.safetensors")


def test_cases_are_chosen_by_parts_of_their_names(context: Context) -> None:
    assert context.wants("fixed to 32")
    chosen = Context(context.folder, context.sd_scripts, context.sd_python, cases=("sv_", "conv"))
    assert chosen.wants("sv_ratio=20")
    assert not chosen.wants("fixed to 32")
