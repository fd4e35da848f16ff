"""A tool that scales a network's tensors: small, but with every kind of setting that a tool may declare."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lora_ext import cli
from lora_ext.config.fields import setting
from lora_ext.merge import tools
from lora_ext.merge.tools import Tool
from lora_ext.merge.work import ModuleReport, OutputFile, ToolReport, Work, check_output, write_result
from lora_ext.networks.file import read_network
from lora_ext.protocols import UserError


@dataclass(frozen=True)
class ScaleSettings:
    """What the sample tool is told."""

    file: str = setting("", "Network", "The network to scale.", sd_scripts="", kind="network")
    out: str = setting("", "Output", "The file to write.", sd_scripts="", kind="output")
    factor: float = setting(1.0, "Factor", "100 % is 1.", minimum=0.0, maximum=10.0, sd_scripts="")
    conv_rank: int | None = setting(None, "Rank", "For convolutions.", minimum=1, sd_scripts="")
    note: str = setting("", "Notes", "One a line.", lines=3, sd_scripts="")
    method: str = setting("all", "Method", "Which tensors.", choices=("all", "up"), sd_scripts="")
    slow: bool = setting(False, "Slow", "Take a long time.", sd_scripts="")
    device: str = setting("auto", "Device", "Where.", choices=("auto", "cpu", "cuda"), sd_scripts="")
    overwrite: bool = setting(False, "Overwrite", "Replace what is there.", sd_scripts="")


def _report(settings: ScaleSettings, path: Path, files: tuple[OutputFile, ...]) -> ToolReport:
    modules = [ModuleReport("lora_unet_mid_block_attentions_0_proj_in", 4, 2, 0.75, torch.tensor([2.0, 1.0, 0.5, 0.1]))]
    facts = {"Network": path.stem, "Notes": settings.note.replace("\n", " + "), "Rank": str(settings.conv_rank)}
    return ToolReport("Scaled", facts, modules, ["<b>careful</b>"], files, details={"factor": settings.factor})


def preview(settings: ScaleSettings, work: Work) -> ToolReport:
    """What would be written."""
    path = work.network(settings.file)
    return _report(settings, path, (OutputFile(Path(settings.out), path.stat().st_size),))


def run(settings: ScaleSettings, work: Work) -> ToolReport:
    """Write it."""
    path = work.network(settings.file)
    out = check_output(Path(settings.out), [path], settings.overwrite)
    if settings.factor == 0:
        raise UserError("factor = 0.0: nothing would be left")
    if settings.slow:
        print("at work", file=sys.stderr, flush=True)
    for part in range(400 if settings.slow else 4):
        work.step(part, 400 if settings.slow else 4)
        time.sleep(0.05 if settings.slow else 0)
    content = read_network(path)
    tensors = {name: tensor * settings.factor for name, tensor in content.tensors.items()}
    return _report(settings, path, (write_result(out, tensors, content.metadata, "float", work),))


TOOL = Tool("scale", "Scale", "Multiply a network by a factor.", ScaleSettings, run, preview)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the sample tool among the registered ones, for one test."""
    monkeypatch.setitem(tools.MODULES, "scale", __name__)
    monkeypatch.setitem(cli.FILE_TOOLS, "scale", "multiply a network by a factor")
    monkeypatch.setitem(cli.COMMANDS, "scale", ("lora_ext.commands.file_tools", "multiply a network by a factor"))
