"""Which format a text has, by its content, and what is read from it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ext.config.imports import json_formats, powershell, toml_formats
from lora_ext.config.imports.carry import carry_over
from lora_ext.config.imports.command_line import command_and_variables, options_of
from lora_ext.config.imports.result import Carried, Imported, Note
from lora_ext.config.toml_files import flatten_tables
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.protocols import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LONGEST_FILE = 64 * 2**20
"""Bytes; metadata of a large dataset has some megabytes."""

_DATASET = "this is a description of a dataset, not of a training: it becomes dataset_config, everything else stays"


def import_file(path: Path, base: TrainConfig | None = None, whole: bool = True) -> Imported:
    """The settings in a file of any format that is known; raises UserError where it cannot be read or used."""
    try:
        if path.stat().st_size > LONGEST_FILE:
            raise UserError(f"{path} has more than {LONGEST_FILE // 2**20} MB: this is no file of settings")
        text = path.read_bytes().decode(_encoding(path.read_bytes()[:4]))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file to import") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): check its permissions") from error
    return import_text(text, base, path, whole)


def _encoding(first: bytes) -> str:
    """PowerShell saves what is piped into a file as UTF-16 with a mark."""
    return "utf-16" if first[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def import_text(text: str, base: TrainConfig | None = None, path: Path | None = None, whole: bool = True) -> Imported:
    """The settings in a text of any format that is known, over `base` or the defaults; `path` is where it came from.

    A configuration for sd-scripts keeps sd-scripts' own defaults for what it leaves out. Raises UserError where no
    format fits, ConfigError with all values together that do not fit our settings; also where they contradict each
    other, unless they are not the `whole` of a run.
    """
    imported = _recognised(text, base, path)
    if whole:
        make_config({}, imported.config)
    return imported


def _recognised(text: str, base: TrainConfig | None, path: Path | None) -> Imported:
    stripped = text.lstrip("\ufeff").strip()
    if not stripped:
        raise UserError(f"{path or 'the text'} is empty: there is nothing to import")
    if stripped[0] in "{[" and (found := _import_json(stripped, base, path)) is not None:
        return found
    if powershell.looks_like_a_script(stripped):
        options, skipped = powershell.script_options(stripped)
        lost = [Note(name, "lost", why) for name, why in skipped]
        return _from_options("a PowerShell script", options, base, lost)
    lines = json_formats.lines_of_settings(stripped)
    if lines is not None:
        return _from_options("LoRA-train-GUI settings", _renamed_lines(lines), base)
    try:
        document = tomllib.loads(stripped)
    except tomllib.TOMLDecodeError as error:
        if "--" in stripped and stripped[0] != "[":
            return _import_command_line(stripped, base)
        raise UserError(f"{path or 'the text'}: {_no_format(stripped)}; read as TOML: {error}") from error
    return _import_toml(document, stripped, base, path)


def _no_format(text: str) -> str:
    first = text.splitlines()[0][:60]
    return (
        "no format that is known; allowed are TOML of sd-scripts and LoRA_Easy_Training_Scripts, JSON of kohya_ss, "
        f"command lines of sd-scripts, PowerShell scripts and dataset files (it begins with {first!r})"
    )


def _import_toml(document: dict[str, Any], text: str, base: TrainConfig | None, path: Path | None) -> Imported:
    if toml_formats.is_own(document):
        values = flatten_tables(document)
        config = make_config(values, base, whole=False)
        return Imported("settings of LoRA Workshop", values, config, tuple(_plainly(values)))
    if toml_formats.is_dataset(document):
        return _dataset("a dataset file of sd-scripts", text, base, path)
    if toml_formats.is_easy_training(document):
        options = toml_formats.easy_training_options(document)
        options.setdefault("lr_warmup_ratio", options.pop("warmup_ratio", None))
        return _from_options("LoRA_Easy_Training_Scripts' TOML", options, base)
    return _from_options("sd-scripts' TOML", toml_formats.sd_scripts_options(document), base)


def _plainly(values: Mapping[str, Any]) -> list[Note]:
    return [Note(name, "mapped", f"{name} = {value}") for name, value in values.items()]


def _import_json(text: str, base: TrainConfig | None, path: Path | None) -> Imported | None:
    """What is in a JSON text; None where it is none, but perhaps TOML that begins with a table."""
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        if _is_json_lines(text):
            return _dataset("a metadata file with a picture a line", text, base, path)
        if text[0] == "{":
            raise UserError(f"{path or 'the text'} cannot be read as JSON: {error}") from error
        return None
    if json_formats.is_concept_list(document):
        return _dataset("a concept list of sd_dreambooth", text, base, path)
    if isinstance(document, dict) and _is_json_lines(text):
        return _dataset("a metadata file with a picture a line", text, base, path)
    if json_formats.is_metadata(document):
        return _dataset("a metadata file of sd-scripts", text, base, path)
    if not isinstance(document, dict):
        raise UserError(f"{path or 'the text'}: this JSON holds no settings; a list of names and values is needed")
    if json_formats.is_dreambooth(document):
        return _import_dreambooth(document, base)
    if json_formats.is_kohya(document):
        return _from_options("a preset of kohya_ss", json_formats.kohya_options(document), base)
    if json_formats.is_easy_training_json(document):
        return _from_options("LoRA_Easy_Training_Scripts' JSON", json_formats.renamed(document), base)
    return _from_options("JSON of sd-scripts' options", json_formats.renamed(document), base)


def _is_json_lines(text: str) -> bool:
    """Whether each line is a picture with its caption."""
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        pictures = [json.loads(line) for line in lines]
    except (json.JSONDecodeError, RecursionError):
        return False
    names = {"file_name", "image", "image_path", "caption", "text"}
    return all(isinstance(each, dict) and len(names & set(each)) >= 2 for each in pictures)


def _import_dreambooth(document: Mapping[str, Any], base: TrainConfig | None) -> Imported:
    options, left = json_formats.dreambooth_options(document)
    notes = [Note(name, "explained", why) for name, why in left]
    concepts = document.get("concepts_list")
    if json_formats.is_concept_list(concepts):
        options["dataset_config"] = json.dumps(concepts, ensure_ascii=False, indent=2)
    return _from_options("sd_dreambooth's db_config.json", options, base, notes)


def _renamed_lines(lines: Mapping[str, Any]) -> dict[str, Any]:
    options = json_formats.renamed(lines)
    extra = str(options.pop("additional_parameters", "") or "")
    return options | options_of(extra)[0]


def _import_command_line(text: str, base: TrainConfig | None) -> Imported:
    options, missing = options_of(*command_and_variables(text))
    if not options:
        raise UserError("the command line has no options (--name=value): paste it whole")
    notes = [
        Note(name, "lost", f"{value}: the text does not say what it stands for") for name, value in missing.items()
    ]
    return _from_options("a command line of sd-scripts", options, base, notes)


def _dataset(kind: str, text: str, base: TrainConfig | None, path: Path | None) -> Imported:
    values = {"dataset_config": str(path) if path else text}
    return Imported(kind, values, make_config(values, base, whole=False), (Note("dataset_config", "mapped", _DATASET),))


def _from_options(
    kind: str, options: Mapping[str, Any], base: TrainConfig | None, notes: list[Note] | None = None
) -> Imported:
    """The result of sd-scripts' options."""
    carried: Carried = carry_over({str(name): value for name, value in options.items()})
    config = make_config(carried.values, base, whole=False)
    return Imported(kind, carried.values, config, (*(notes or ()), *carried.notes), carried.base_model)
