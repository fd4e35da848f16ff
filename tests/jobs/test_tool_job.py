"""A tool's work in its thread: how it ends, and what is told of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from lora_ext.jobs.tool_job import ToolRunner
from lora_ext.merge.tools import Tool
from lora_ext.merge.work import ToolReport, Work
from lora_ext.protocols import ConfigError, Control, Progress, UserError


def work_of(control: Control, progress: Progress) -> Work:
    return Work(control=control, progress=progress)


def tool(run: Callable[[object, Work], ToolReport]) -> Tool:
    return Tool("one", "The one", "", object, run, lambda settings, work: ToolReport("preview"))


def wait(runner: ToolRunner) -> str:
    for thread in threading.enumerate():
        if thread.name == "lora-workshop-files":
            thread.join(10)
    return runner.status().state


def failing(error: Exception) -> Callable[[object, Work], ToolReport]:
    def run(settings: object, work: Work) -> ToolReport:
        raise error

    return run


def test_nothing_yet() -> None:
    runner = ToolRunner()
    assert (runner.status().number, runner.status().state, runner.cancel().state) == (0, "idle", "idle")
    assert runner.report()[1] is None
    runner.close()


def test_progress_report_and_what_is_told_after() -> None:
    runner, told, gate = ToolRunner(), [], threading.Event()

    def run(settings: object, work: Work) -> ToolReport:
        work.step(3, 8)
        gate.wait(10)
        return ToolReport("done")

    runner.start(tool(run), None, work_of, {"file": "a"}, after=told.append)
    with pytest.raises(UserError, match="The one is at work"):
        runner.start(tool(run), None, work_of, {})
    gate.set()
    assert wait(runner) == "finished"
    status, report = runner.report()
    assert (status.done, status.total, dict(status.values)) == (3, 8, {"file": "a"})
    assert report is not None and report.title == "done" and told == [report]
    runner.start(tool(run), None, work_of, {}, preview=True, after=told.append)
    assert wait(runner) == "finished" and len(told) == 1
    assert (runner.status().number, runner.report()[1]) == (2, ToolReport("preview"))


@pytest.mark.parametrize(
    ("error", "problems"),
    [
        (UserError("no such file"), ("no such file",)),
        (ConfigError(["a: wrong", "b: wrong"]), ("a: wrong", "b: wrong")),
        (ZeroDivisionError("oh"), ("The one failed: ZeroDivisionError: oh",)),
    ],
)
def test_failures_are_told(error: Exception, problems: tuple[str, ...]) -> None:
    runner = ToolRunner()
    runner.start(tool(failing(error)), None, work_of, {})
    assert wait(runner) == "failed"
    assert runner.status().problems == problems and runner.report()[1] is None


def test_what_comes_after_may_fail() -> None:
    runner = ToolRunner()
    after = failing(OSError("the list is gone"))
    runner.start(
        tool(lambda settings, work: ToolReport("done")), None, work_of, {}, after=lambda report: after(report, Work())
    )
    assert wait(runner) == "finished"


def test_the_end_of_the_program_cancels() -> None:
    runner = ToolRunner()

    def run(settings: object, work: Work) -> ToolReport:
        while True:
            work.step(0, 1)

    runner.start(tool(run), None, work_of, {})
    runner.close(10)
    assert runner.status().state == "cancelled"
