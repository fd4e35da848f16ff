"""Routes for settings that come from elsewhere and go elsewhere: presets, imports, exports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any

import torch
from fastapi import APIRouter, Response
from pydantic import BaseModel

from lora_ext.config.imports import Imported, import_text
from lora_ext.config.presets import Preset, card_for_memory, compose, preset_named, presets
from lora_ext.config.sd_scripts_export import config_to_sd_scripts
from lora_ext.config.toml_files import config_to_toml
from lora_ext.config.train_config import all_settings, make_config
from lora_ext.jobs.own_presets import OF_ONE_RUN, OwnPresets, presets_folder
from lora_ext.protocols import CheckpointInfo, Host, UserError
from lora_ext.training.precision import has_bf16
from lora_ext.web.form_values import shown_values

_MOST_CHARACTERS = 8 * 2**20


class PresetNames(BaseModel):
    """Built-in presets, later ones over earlier."""

    names: list[str]


class SavedPreset(BaseModel):
    """A preset of one's own: its name, and what is to be kept of the form."""

    name: str
    settings: dict[str, Any] = {}


class ImportBody(BaseModel):
    """A text of settings in any format that is known, and the name of the file that it comes from."""

    text: str
    file: str = ""


class ExportBody(BaseModel):
    """What stands in the form, and the format that is wanted: "own" or "sd-scripts"."""

    settings: dict[str, Any]
    format: str = "own"


def add_preset_routes(router: APIRouter, host: Host) -> None:
    """The routes, among the others of `router`."""
    own = OwnPresets(presets_folder(host))

    @router.get("/presets")
    def list_presets(response: Response) -> dict[str, Any]:
        """Built-in presets by kind, a person's own by name, and the card that fits the memory that was found."""
        response.headers["Cache-Control"] = "no-store"
        kinds = {kind: [_told(each) for each in presets() if each.kind == kind] for kind in ("subject", "card")}
        total = host.checkpoint_info().total_memory_gb
        card = card_for_memory(total).name if total is not None else ""
        return {"subjects": kinds["subject"], "cards": kinds["card"], "own": own.names(), "card": card}

    @router.post("/presets/apply")
    def apply(body: PresetNames) -> dict[str, Any]:
        """The fields that built-in presets fill."""
        return {"values": preset_fields(body.names, host.checkpoint_info())}

    @router.get("/presets/own")
    def load(name: str) -> dict[str, Any]:
        """The fields that a preset of one's own fills."""
        return {"values": _shown(own.values(name))}

    @router.post("/presets/save")
    def save(body: SavedPreset) -> dict[str, Any]:
        """Keep what stands in the form under a name."""
        return {"name": own.save(body.name, make_config(body.settings, whole=False)), "own": own.names()}

    @router.post("/presets/delete")
    def delete(body: SavedPreset) -> dict[str, Any]:
        """Forget a preset of one's own."""
        own.delete(body.name)
        return {"own": own.names()}

    @router.post("/import")
    def import_settings(body: ImportBody) -> dict[str, Any]:
        """The fields that an imported text fills, and what became of every name in it."""
        if len(body.text) > _MOST_CHARACTERS:
            raise UserError(
                f"{body.file or 'the text'} has more than {_MOST_CHARACTERS:,} characters: no settings have"
            )
        return imported_pieces(import_text(body.text, whole=False), host.checkpoint_info().name)

    @router.post("/export")
    def export(body: ExportBody) -> dict[str, Any]:
        """What stands in the form as the text of a TOML file, and a name for it."""
        config = make_config(body.settings)
        name = config.saving.output_name or "lora"
        if body.format == "sd-scripts":
            text = config_to_sd_scripts(config, host.checkpoint_info().name)
            return {"text": text, "file": f"{name}-sd-scripts.toml"}
        return {"text": config_to_toml(config), "file": f"{name}.toml"}


def preset_fields(names: list[str], info: CheckpointInfo) -> dict[str, Any]:
    """The fields that presets fill; where no graphics card computes, precision is left as it is."""
    values = compose((preset_named(name) for name in names), bf16=_knows_bf16())
    if info.device.startswith("cpu"):
        values.pop("mixed_precision", None)
    return _shown(values)


def imported_pieces(imported: Imported, loaded: str) -> dict[str, Any]:
    """The fields of an import and its notes by kind; a description of a dataset fills its own field alone."""
    warning = imported.base_model_warning(loaded)
    notes = {
        kind: [str(note) for note in imported.of_kind(kind)] for kind in ("lost", "unknown", "explained", "mapped")
    }
    only_dataset = set(imported.values) == {"dataset_config"}
    fields = shown_values(imported.config)
    kept = set(OF_ONE_RUN) - set(imported.values)
    return {
        "format": imported.format,
        "values": _shown(imported.values) if only_dataset else {k: v for k, v in fields.items() if k not in kept},
        "notes": notes,
        "warnings": [warning] if warning else [],
        "base_model": PureWindowsPath(imported.base_model).name,
    }


def _told(preset: Preset) -> dict[str, str]:
    return {"name": preset.name, "title": preset.title, "description": preset.description}


def _shown(values: Mapping[str, Any]) -> dict[str, Any]:
    """These settings as their fields take them."""
    known = all_settings()
    fields = shown_values(make_config({name: value for name, value in values.items() if name in known}, whole=False))
    return {name: fields[name] for name in values if name in fields}


def _knows_bf16() -> bool:
    return not torch.cuda.is_available() or has_bf16(torch.device("cuda"))
