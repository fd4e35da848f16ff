"""`import`: settings of other trainers, as a settings file of ours."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lora_ext.config.given_path import given_path
from lora_ext.config.imports import Imported, import_file, import_text
from lora_ext.config.toml_files import config_to_toml
from lora_ext.config.train_config import TrainConfig
from lora_ext.protocols import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file to read and the file to write."""
    parser.add_argument("file", metavar="FILE", help="the settings; - reads them from standard input")
    parser.add_argument("--out", type=Path, metavar="FILE", help="TOML file to write (default: standard output)")
    parser.add_argument("--all", action="store_true", help="tell what became of every name, not only of the lost ones")
    parser.epilog = (
        "Reads TOML of sd-scripts and LoRA_Easy_Training_Scripts, JSON of kohya_ss and sd_dreambooth, a command line\n"
        "of sd-scripts as text, the guides' PowerShell scripts, settings of LoRA-train-GUI. Dataset files of\n"
        "sd-scripts, metadata and concept lists become dataset_config. What a file leaves out is as in sd-scripts."
    )


def run(options: argparse.Namespace) -> int:
    """Read, tell what became of it, and write our file."""
    imported = import_text(sys.stdin.read()) if options.file == "-" else import_file(Path(options.file))
    lines = imported.summary()
    if options.all:
        lines += [f"{note.kind}: {note}" for note in imported.notes if note.kind in ("mapped", "explained")]
    if imported.base_model:
        lines.append(f"made for {imported.base_model}: give it with --checkpoint when you train")
    print("\n".join(lines), file=sys.stderr)
    text = config_to_toml(imported.config)
    if options.out is None:
        print(text)
    else:
        write_text(options.out, text)
        print(f"Written: {options.out}", file=sys.stderr)
    return 0


def write_text(path: Path, text: str) -> None:
    """Write a text file; raises UserError where that fails."""
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): choose another place, or free this one"
        ) from error


def imported_settings(options: argparse.Namespace, base: TrainConfig) -> Imported:
    """The settings of `--import`, whose notes are told; the checkpoint that they name is taken where none is given.

    What contradicts each other is left to the caller, who may know more settings.

    Raises UserError where something would be trained otherwise than the file says.
    """
    imported = import_file(options.import_file, base, whole=False)
    lost = imported.of_kind("lost")
    if lost:
        lines = "\n".join(f"  - {note}" for note in lost)
        raise UserError(
            f"{options.import_file} ({imported.format}) cannot be carried over whole:\n{lines}\n"
            f"`import {options.import_file} --out mine.toml` writes the rest as a file: look at it, then train with "
            "--config mine.toml"
        )
    print("\n".join(imported.summary()), file=sys.stderr)
    if options.checkpoint is None and imported.base_model:
        options.checkpoint = base_checkpoint(imported.base_model)
    return imported


def base_checkpoint(name: str) -> Path:
    """The file that an imported configuration trains on; raises UserError where it is none or not there."""
    path = given_path(name)
    if path.is_file():
        return path
    kind = "is a folder (of diffusers); a checkpoint file is needed" if path.is_dir() else "is not there"
    raise UserError(f"the imported settings train on {name}, which {kind}: give a checkpoint with --checkpoint FILE")
