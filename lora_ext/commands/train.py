"""`train`: a network from a folder of pictures."""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from lora_ext.commands.import_settings import write_text
from lora_ext.commands.options import (
    add_host_options,
    add_settings_options,
    open_host,
    settings_of,
    stop_on_signals,
)
from lora_ext.config.fields import Setting
from lora_ext.config.given_path import given_path
from lora_ext.config.presets import presets
from lora_ext.config.sd_scripts_export import config_to_sd_scripts
from lora_ext.config.toml_files import config_to_toml
from lora_ext.config.train_config import GROUP_TITLES, TrainConfig, all_settings
from lora_ext.protocols import Control, Events, UserError

if TYPE_CHECKING:
    from lora_ext.training.checks import PreparedRun

EXAMPLE = """\
example:
  python run.py train --set train_data_dir=pictures --set output_name=mycat --set resolution=512 \\
      --checkpoint sd-v1-5.safetensors

Ctrl-C stops after the present step and keeps what is trained; a second one aborts.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings, host, and what is shown."""
    add_settings_options(parser)
    add_host_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line on standard output: what happens")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--plan", action="store_true", help="look at the pictures, tell what would be done, and stop")
    action.add_argument("--show-config", action="store_true", help="print all settings as a TOML file, and stop")
    action.add_argument(
        "--export", type=Path, metavar="FILE", help="write them as a TOML file for sd-scripts, and stop"
    )
    parser.epilog = "\n".join([EXAMPLE, presets_help(), "", settings_help()])


def presets_help(width: int = 110) -> str:
    """Every preset with what it is for."""
    lines = ["presets (--preset, for example --preset character --preset card-8gb):"]
    for preset in presets():
        head = f"  {preset.name} "
        lines += _wrapped(preset.description, width, head.ljust(16))
    return "\n".join(lines)


def settings_help(width: int = 110) -> str:
    """Every setting with its help, default and what is allowed, by groups."""
    lines = ["settings (in the --config file, or as --set NAME=VALUE):"]
    for group, title in GROUP_TITLES.items():
        lines += ["", f" {title}"]
        for declared in all_settings().values():
            if declared.group == group:
                text = f"{declared.help} ({_default(declared)}; {declared.allowed()})"
                head = f"  {declared.name} "
                lines += _wrapped(text, width, head.ljust(36))
    return "\n".join(lines)


def _wrapped(text: str, width: int, head: str) -> list[str]:
    """Lines of text beside a head; words with hyphens stay whole, options are among them."""
    indent = " " * len(head)
    return textwrap.wrap(text, width, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)


def _default(declared: Setting) -> str:
    value = declared.default
    if isinstance(value, bool):
        value = "true" if value else "false"
    shown = {None: "none", "": "empty"}.get(value, value)
    unit = f" {declared.unit}" if declared.unit and value is not None else ""
    return f"default {shown}{unit}"


def run(options: argparse.Namespace) -> int:
    """Train; everything that can be wrong with the settings and the pictures is told before anything is loaded."""
    config = settings_of(options)
    if options.show_config:
        print(config_to_toml(config))
        return 0
    if options.export is not None:
        write_text(options.export, config_to_sd_scripts(config, str(options.checkpoint or "")))
        print(f"Written: {options.export}")
        return 0
    from lora_ext.training.checks import prepare_run

    prepared = prepare_run(config, output_folder(config, options.home))
    return show_plan(prepared, options.json) if options.plan else train(options, prepared)


def output_folder(config: TrainConfig, home: Path) -> Path:
    """Where the network's files go: the settings' folder, or the home's own for networks.

    The run's record tells it to programs that are started elsewhere, hence the whole path.
    """
    chosen = config.saving.output_dir
    return (given_path(chosen) if chosen.strip() else home / "models" / "Lora").resolve()


def show_plan(prepared: PreparedRun, as_json: bool) -> int:
    """Tell what a run would do."""
    if as_json:
        plan = prepared.plan
        known = {
            "pictures": plan.images,
            "pictures_with_repeats": plan.repeats_total,
            "batches_per_epoch": plan.batches_per_epoch,
            "steps": plan.total_steps,
            "epochs": plan.total_epochs,
            "files": [str(path) for path in plan.files],
            "warnings": prepared.warnings,
        }
        print(json.dumps(known, ensure_ascii=False))
    else:
        warnings = [f"warning: {line}" for line in prepared.warnings]
        print("\n".join([*prepared.report.summary(), *prepared.plan.summary(), *warnings]))
    return 0


def train(options: argparse.Namespace, prepared: PreparedRun) -> int:
    """Train in this thread, entered in the home's registry of runs, so that the app lists it too."""
    from lora_ext.jobs.console import JsonLinesEvents, TqdmEvents
    from lora_ext.jobs.recording import check_host, train_recorded
    from lora_ext.jobs.registry import RunRegistry
    from lora_ext.jobs.tensorboard_log import check_logs

    check_logs(prepared.config)
    host = open_host(options)
    check_host(prepared, host)
    run = RunRegistry(host.folders().runs).create_prepared(prepared, checkpoint=host.checkpoint_info().name)
    control = Control()
    events: Events = JsonLinesEvents() if options.json else TqdmEvents()
    with stop_on_signals(control):
        record = train_recorded(host, run, prepared.config, control, [events])
    if record.state == "failed":
        raise UserError(record.error)
    if not options.json:
        print(f"{record.state}: {record.steps} steps in {(record.finished or 0) - (record.started or 0):.0f} s")
        print("\n".join(f"  {path}" for path in record.files))
        print(f"In prompts: <lora:{prepared.config.saving.output_name}:1>")
    return 0
