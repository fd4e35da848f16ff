"""TOML of sd-scripts (flat or in sections), of LoRA_Easy_Training_Scripts (nested), and dataset files of sd-scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lora_ext.config.train_config import GROUP_TITLES, all_settings

_EASY_TRAINING_PARTS = ("args", "dataset_args")
_DATASET_TABLES = ("general", "datasets")


def is_own(document: Mapping[str, Any]) -> bool:
    """Whether a document is a settings file of ours: tables named like our groups with our settings in them."""
    tables = [(name, table) for name, table in document.items() if isinstance(table, dict)]
    known = all_settings()
    ours = [name for name, table in tables if any(key in known and known[key].group == name for key in table)]
    return bool(ours) and all(name in GROUP_TITLES for name, _ in tables)


def is_easy_training(document: Mapping[str, Any]) -> bool:
    """Whether a document is LoRA_Easy_Training_Scripts': `[network_args.args]`, `[bucket_args.dataset_args]`, …"""
    return any(
        isinstance(table, dict) and any(isinstance(table.get(part), dict) for part in _EASY_TRAINING_PARTS)
        for table in document.values()
    )


def is_dataset(document: Mapping[str, Any]) -> bool:
    """Whether a document is a dataset file of sd-scripts and nothing else."""
    return isinstance(document.get("datasets"), list) and set(document) <= set(_DATASET_TABLES)


def sd_scripts_options(document: Mapping[str, Any]) -> dict[str, Any]:
    """sd-scripts' options of a document: tables are headings only, save for `[[datasets]]`, which becomes a text."""
    options: dict[str, Any] = {}
    has_datasets = isinstance(document.get("datasets"), list)
    for name, value in document.items():
        if name in _DATASET_TABLES and has_datasets:
            continue
        if isinstance(value, dict) and name not in ("network_args", "optimizer_args", "lr_scheduler_args"):
            options.update(value)
        else:
            options[name] = value
    if has_datasets:
        options["dataset_config"] = dataset_text(document.get("general", {}), document["datasets"])
    return options


def easy_training_options(document: Mapping[str, Any]) -> dict[str, Any]:
    """sd-scripts' options of a document of LoRA_Easy_Training_Scripts; its subsets become a dataset file's text."""
    options: dict[str, Any] = {}
    for name, table in document.items():
        if not isinstance(table, dict):
            if name not in ("subsets", "datasets"):
                options[name] = table
            continue
        parts = [table[part] for part in _EASY_TRAINING_PARTS if isinstance(table.get(part), dict)]
        for part in parts or [table]:
            options.update(part)
    if options.pop("fa", False):
        options["network_module"] = "networks.lora_fa"
    arguments = options.get("network_args")
    if isinstance(arguments, dict) and "network_module" not in options:
        options["network_module"] = (
            "lycoris.kohya" if "algo" in arguments else "networks.dylora" if "unit" in arguments else "networks.lora"
        )
    subsets = document.get("subsets")
    if isinstance(subsets, list) and subsets:
        options["dataset_config"] = dataset_text({}, [{"subsets": subsets}])
    elif isinstance(document.get("datasets"), list):
        options["dataset_config"] = dataset_text(document.get("general", {}), document["datasets"])
    return options


_OF_THEIR_PROGRAM = ("name", "random_crop_padding_percent")
"""Keys of a subset that only LoRA_Easy_Training_Scripts reads."""


def dataset_text(general: Any, datasets: Any) -> str:
    """A dataset file's text from its tables, as sd-scripts writes them."""
    lines = ["[general]", *_pairs(general)] if isinstance(general, dict) and general else []
    for dataset in datasets if isinstance(datasets, list) else []:
        if not isinstance(dataset, dict):
            continue
        lines += ["", "[[datasets]]", *_pairs({key: value for key, value in dataset.items() if key != "subsets"})]
        subsets = dataset.get("subsets")
        for subset in subsets if isinstance(subsets, list) else []:
            if isinstance(subset, dict):
                kept = {key: value for key, value in subset.items() if key not in _OF_THEIR_PROGRAM}
                lines += ["", "  [[datasets.subsets]]", *(f"  {line}" for line in _pairs(kept))]
    return "\n".join(lines).strip() + "\n"


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(name)} = {_toml(value)}" for name, value in table.items() if value is not None and value != ""]


def _key(name: str) -> str:
    plain = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if plain else json.dumps(name, ensure_ascii=False)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)} = {_toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
