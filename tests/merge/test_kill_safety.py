"""Tools that are killed: inputs stay, no output is partial, and the next tool clears up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_ext.checkpoint.tensor_files import open_tensor_file
from tests.merge.tool_cases import TO_ONE_FILE, Inputs, ToolCase

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[2]
MOST_POINTS = 8

SCRIPT = """\
import builtins, io, json, os, signal, sys
from pathlib import Path

import torch

torch.set_num_threads(1)
from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import Work
from lora_ext.networks import atomic_write

jobs = json.loads(sys.stdin.readline())
most_points = jobs.pop("most_points")


class Points:
    "Counts the moments of a run; kills the process at one of them."

    def __init__(self, dies_at):
        self.count, self.dies_at = 0, dies_at

    def pass_one(self, *_):
        self.count += 1
        if self.count == self.dies_at:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


class Writer:
    "A file that may die in the middle of each write, with half of it written."

    def __init__(self, file, points):
        self.file, self.points = file, points

    def write(self, chunk):
        half = len(chunk) // 2
        self.file.write(chunk[:half])
        self.file.flush()
        self.points.pass_one()
        self.file.write(chunk[half:])

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        self.file.close()


def run(job, dies_at):
    points = Points(dies_at)
    real_open, real_sync, real_replace = open, os.fsync, os.replace

    def opened(path, mode="r", *rest, **more):
        file = real_open(path, mode, *rest, **more)
        return Writer(file, points) if "x" in mode else file

    def sync(descriptor):
        points.pass_one()
        real_sync(descriptor)
        points.pass_one()

    def replace(source, target):
        points.pass_one()
        real_replace(source, target)
        points.pass_one()

    atomic_write.open = opened
    os.fsync, os.replace = sync, replace
    tool = tool_named(job["tool"])
    points.pass_one()
    tool.run(make_settings(tool, job["values"]), Work(progress=points.pass_one))
    points.pass_one()
    return points.count


def in_a_child(job, dies_at):
    "The number of moments, or nothing where it was killed."
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(run(job, dies_at)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return told


for name, job in jobs.items():
    Path(job["out"]).unlink(missing_ok=True)
    count = int(in_a_child(job, 0))
    Path(job["out"]).unlink()
    points = range(1, count + 1)
    if count > most_points:
        half = most_points // 2
        points = [1 + (count - half) * part // half for part in range(half)] + [*points[-half:]]  # the last ones write
    for point in points:
        assert in_a_child(job, point) == "", f"{name} was not killed at {point} of {count}"
        print(json.dumps([name, point, count]), flush=True)
        assert sys.stdin.readline().strip() == "go on"
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="one process for each moment would take minutes there")
def test_killed_at_every_moment(inputs: Inputs) -> None:
    """One process forks a child for every moment of every tool: between steps, within writes, around the renaming."""
    jobs = {
        str(case): {"tool": case.tool, "values": case.values(inputs), "out": str(inputs.out)} for case in TO_ONE_FILE
    }
    before = {path.name: path.read_bytes() for path in inputs.folder.iterdir()}
    seen = dict.fromkeys(jobs, 0)
    partial = 0
    with killer(SCRIPT) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({**jobs, "most_points": MOST_POINTS}) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            name, point, count = json.loads(line)
            where = f"{name}: killed at {point} of {count}"
            after = {path.name: path.read_bytes() for path in inputs.folder.iterdir()}
            assert {each: after[each] for each in before} == before, where
            left = set(after) - set(before)
            temporary = {each for each in left if each.endswith(".writing")}
            assert left - temporary <= {"out.safetensors"}, where
            if inputs.out.exists():
                assert whole(inputs.out), where
                inputs.out.unlink()
            partial += len(temporary)
            seen[name] += 1
            process.stdin.write("go on\n")
            process.stdin.flush()
    assert process.returncode == 0
    assert min(seen.values()) >= 5
    assert partial >= len(jobs)  # some were killed while they wrote
    TO_ONE_FILE[0].run(inputs)
    assert {path.name for path in inputs.folder.iterdir()} == {*before, "out.safetensors"}


HANGING = """\
import json, os, sys, time

import torch

torch.set_num_threads(1)
from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import Work

job = json.loads(sys.stdin.readline())


def hang(*_):
    print("here", flush=True)
    time.sleep(600)


setattr(os, job["hangs_in"], hang)
tool = tool_named(job["tool"])
tool.run(make_settings(tool, job["values"]), Work())
"""


@pytest.mark.slow
@pytest.mark.parametrize("hangs_in", ["fsync", "replace"])
def test_killed_from_outside(inputs: Inputs, hangs_in: str) -> None:
    """As the task manager does it; what is left over goes with the next write into the folder."""
    case: ToolCase = TO_ONE_FILE[0]
    before = {path.name: path.read_bytes() for path in inputs.folder.iterdir()}
    with killer(HANGING) as process:
        assert process.stdin is not None and process.stdout is not None
        job = {"tool": case.tool, "values": case.values(inputs), "hangs_in": hangs_in}
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == "here"
        process.kill()
    after = {path.name: path.read_bytes() for path in inputs.folder.iterdir()}
    assert {name: after[name] for name in before} == before
    assert [name.endswith(".writing") for name in set(after) - set(before)] == [True]
    case.run(inputs)
    assert {path.name for path in inputs.folder.iterdir()} == {*before, "out.safetensors"}


def killer(script: str) -> subprocess.Popen[str]:
    """A process that runs the script."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def whole(path: Path) -> bool:
    """Whether every tensor of a file can be read."""
    file = open_tensor_file(path)
    return len(list(file.read(set(file.shapes)))) == len(file.shapes) > 0
