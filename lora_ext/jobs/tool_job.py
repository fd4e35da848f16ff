"""A file tool's work in a thread of its own, one at a time; the page that asked for it may come and go."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lora_ext.jobs.remaining import seconds_left
from lora_ext.merge.tools import Tool
from lora_ext.merge.work import ToolReport, Work
from lora_ext.protocols import Cancelled, ConfigError, Control, Progress, UserError

ToolState = Literal["idle", "running", "finished", "cancelled", "failed"]
WorkOf = Callable[[Control, Progress], Work]
"""Makes what a tool is given from the control and the progress of its work."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ToolStatus:
    """How the present or latest work goes on; `number` counts the works of this program, 0 is none yet.

    `values` are the settings as they were given, so that a page that is opened anew can show them.
    """

    number: int = 0
    tool: str = ""
    preview: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)
    state: ToolState = "idle"
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    seconds_left: float | None = None
    problems: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**self.__dict__, "values": dict(self.values), "problems": list(self.problems)}


class _Job:
    """One work of a tool, going on or over."""

    def __init__(self, number: int, tool: Tool, preview: bool, values: Mapping[str, Any]) -> None:
        self.number, self.tool, self.preview, self.values = number, tool, preview, values
        self.control = Control()
        self.state: ToolState = "running"
        self.done, self.total = 0, 0
        self.started, self.ended = time.monotonic(), 0.0
        self.problems: tuple[str, ...] = ()
        self.report: ToolReport | None = None
        self.thread: threading.Thread | None = None

    def progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def status(self) -> ToolStatus:
        running = self.state == "running"
        seconds = (time.monotonic() if running else self.ended) - self.started
        left = seconds_left(seconds, self.done, self.total) if running else None
        return ToolStatus(
            self.number, self.tool.name, self.preview, self.values, self.state, self.done, self.total, seconds, left,
            self.problems,
        )  # fmt: skip


class ToolRunner:
    """Works with files, one after the other. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._job: _Job | None = None

    def start(
        self,
        tool: Tool,
        settings: Any,
        work_of: WorkOf,
        values: Mapping[str, Any],
        preview: bool = False,
        after: Callable[[ToolReport], None] | None = None,
    ) -> ToolStatus:
        """Begin; `after` is told the report of what was written. Raises UserError while another work goes on."""
        action = tool.preview if preview and tool.preview is not None else tool.run
        with self._lock:
            present = self._job
            if present is not None and present.state == "running":
                raise UserError(f"{present.tool.title} is at work: wait until it has ended, or cancel it")
            job = self._job = _Job(present.number + 1 if present is not None else 1, tool, preview, dict(values))
            work = work_of(job.control, job.progress)
            tells = None if preview else after
            job.thread = threading.Thread(
                target=_do, args=(job, lambda: action(settings, work), tells), name="lora-workshop-files", daemon=True
            )
            job.thread.start()
        return job.status()

    def status(self) -> ToolStatus:
        """How the present or latest work goes on."""
        job = self._job
        return job.status() if job is not None else ToolStatus()

    def report(self) -> tuple[ToolStatus, ToolReport | None]:
        """The present or latest work, and its report once it has finished."""
        job = self._job
        return (job.status(), job.report) if job is not None else (ToolStatus(), None)

    def cancel(self) -> ToolStatus:
        """End the work between two of its parts, with nothing written."""
        job = self._job
        if job is not None:
            job.control.cancel()
        return self.status()

    def close(self, timeout: float | None = 60.0) -> None:
        """Before the program ends: cancel the work and wait for that."""
        job = self._job
        if job is not None and job.thread is not None:
            job.control.cancel()
            job.thread.join(timeout)


def _do(job: _Job, action: Callable[[], ToolReport], after: Callable[[ToolReport], None] | None) -> None:
    """Do the work; how it ended is told by the job alone."""
    state: ToolState = "failed"
    try:
        job.report = action()
        state = "finished"
    except Cancelled:
        state = "cancelled"
    except UserError as error:
        job.problems = error.problems if isinstance(error, ConfigError) else (str(error),)
    except Exception as error:
        _log.exception("%s failed", job.tool.name)
        job.problems = (f"{job.tool.title} failed: {type(error).__name__}: {error}",)
    finally:
        job.ended = time.monotonic()
        job.state = state
    if job.report is not None and after is not None:
        try:
            after(job.report)  # may wait for pictures in the making, which is nothing to wait for
        except Exception:
            _log.exception("telling of what %s has written failed", job.tool.name)
