"""Routes for the file tools: what they are told, a preview, the work itself, and how it goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from lora_ext.checkpoint.devices import choose_device
from lora_ext.checkpoint.text_part import TextPart
from lora_ext.config.fields import Setting
from lora_ext.jobs.runner import JobRunner
from lora_ext.jobs.tool_job import ToolStatus
from lora_ext.merge.tools import MODULES, Tool, make_settings, tool_named
from lora_ext.merge.work import ToolReport, Work
from lora_ext.protocols import Control, Host, Progress, UserError
from lora_ext.web.form_values import shown_value
from lora_ext.web.network_routes import refuse_in_training
from lora_ext.web.tool_files import LOADED, ToolFiles
from lora_ext.web.tool_report import report_html

_NEVER_STORE = {"Cache-Control": "no-store"}


class ToolBody(BaseModel):
    """A tool's settings by name."""

    settings: dict[str, Any]


class _Desk:
    """Where a page's wishes become a tool's work."""

    def __init__(self, runner: JobRunner, host: Host) -> None:
        self.runner = runner
        self.host = host
        self.files = ToolFiles(host)

    def begin(self, name: str, values: Mapping[str, Any], preview: bool) -> ToolStatus:
        """Check what is given, and start; UserError where something is wrong, or another work goes on."""
        tool = _tool(name)
        settings = make_settings(tool, _with_outputs(tool, values, self.files))
        self._refuse_in_training(tool, settings)
        device = device_of(getattr(settings, "device", "cpu"), self.host, _in_training(self.runner))

        def work_of(control: Control, progress: Progress) -> Work:
            find_network, find_checkpoint = self.files.find_network, self.files.find_checkpoint
            return Work(
                device, control, progress, find_network, find_checkpoint, lambda text: self._open_text(text, device)
            )

        return self.runner.tools.start(tool, settings, work_of, values, preview, self._tell)

    def _refuse_in_training(self, tool: Tool, settings: Any) -> None:
        """Refuse what would change a file of a run that goes on; what is only added to its folder does not."""
        written = [Path(getattr(settings, each.name)) for each in tool.declared() if each.kind == "output"]
        if tool.changes_input:
            written += filter(None, [self.files.find_network(settings.file)])
        for path in written:
            if not os.path.isdir(path) or settings.overwrite:
                refuse_in_training(path, self.runner)

    def _open_text(self, text: str, device: torch.device) -> AbstractContextManager[TextPart]:
        from lora_ext.host.text_parts import borrowed_text, stored_text

        path = self.files.find_checkpoint(text or LOADED)
        if path is None:
            raise UserError(f"{text}: there is no such checkpoint; choose one of the list")
        is_free = path == self.host.loaded_checkpoint() and not _in_training(self.runner)
        return borrowed_text(self.host, path, device) if is_free else stored_text(path, device)

    def _tell(self, report: ToolReport) -> None:
        for each in report.files:
            self.files.written(each.path)


def add_tool_routes(router: APIRouter, runner: JobRunner, host: Host) -> None:
    """The routes, among the others of `router`; no path leads out of the host's folders."""
    desk, tools = _Desk(runner, host), runner.tools

    @router.get("/tools")
    def declared() -> dict[str, Any]:
        """Every tool with its settings."""
        return {"tools": [tool_as_json(tool_named(name)) for name in MODULES]}

    @router.get("/tools/files")
    def choices(response: Response) -> dict[str, Any]:
        """Names of networks and checkpoints that the tools may be given, and the folders that they write into."""
        response.headers.update(_NEVER_STORE)
        return {"networks": desk.files.network_names(), "checkpoints": desk.files.checkpoint_names()}

    @router.get("/tools/status")
    async def status(response: Response) -> dict[str, Any]:
        """How the present or latest work goes on."""
        response.headers.update(_NEVER_STORE)
        return tools.status().as_json()

    @router.get("/tools/report")
    def report(response: Response) -> dict[str, Any]:
        """The report of the latest work as JSON and as HTML; none while it goes on."""
        response.headers.update(_NEVER_STORE)
        status, found = tools.report()
        told = {"report": found.as_json(), "html": report_html(found, status.preview)} if found is not None else {}
        return {"status": status.as_json(), **told}

    @router.post("/tools/cancel")
    async def cancel() -> dict[str, Any]:
        """End the work; nothing is written."""
        return tools.cancel().as_json()

    @router.post("/tools/{name}/preview")
    async def preview(name: str, body: ToolBody) -> dict[str, Any]:
        """Begin to find out what would come of it."""
        return (await run_in_threadpool(desk.begin, name, body.settings, True)).as_json()

    @router.post("/tools/{name}/run")
    async def run(name: str, body: ToolBody) -> dict[str, Any]:
        """Begin the work."""
        return (await run_in_threadpool(desk.begin, name, body.settings, False)).as_json()


def tool_as_json(tool: Tool) -> dict[str, Any]:
    """A tool and its settings as JSON values."""
    return {
        "name": tool.name,
        "title": tool.title,
        "summary": tool.summary,
        "has_preview": tool.preview is not None,
        "settings": [_setting_as_json(each) for each in tool.declared()],
    }


def _setting_as_json(declared: Setting) -> dict[str, Any]:
    return {
        "name": declared.name,
        "type": declared.type.__name__,
        "optional": declared.optional,
        "default": shown_value(declared, declared.default),
        "label": declared.label,
        "help": declared.help,
        "allowed": declared.allowed(),
        "choices": list(declared.choices or ()),
        "lines": declared.lines,
        "kind": declared.kind,
    }


def device_of(name: str, host: Host, in_training: bool) -> torch.device:
    """The device of a tool's work: "auto" is the host's graphics card while no training has it, else the CPU.

    Raises UserError where a card is asked for that a training has.
    """
    own = host.checkpoint_info().device
    if name == "auto":
        return torch.device(own if own.startswith("cuda") and not in_training else "cpu")
    if name != "cpu" and in_training:
        raise UserError(f"device = {name!r}: a training has the graphics card: choose cpu, or wait until it has ended")
    return torch.device(own) if name == "cuda" and own.startswith("cuda") else choose_device(name)


def _tool(name: str) -> Tool:
    if name not in MODULES:
        raise UserError(f"{name}: there is no tool of this name; there are {', '.join(MODULES)}")
    return tool_named(name)


def _with_outputs(tool: Tool, values: Mapping[str, Any], files: ToolFiles) -> dict[str, Any]:
    """The values with whole paths for what is written."""
    outputs = [each.name for each in tool.declared() if each.kind == "output"]
    placed = {name: files.output(name, str(values.get(name) or ""), tool.writes_checkpoints) for name in outputs}
    return {**values, **{name: str(path) for name, path in placed.items()}}


def _in_training(runner: JobRunner) -> bool:
    record = runner.status().record
    return record is not None and record.state == "running"
