"""sd-scripts' dataset file: `[general]`, `[[datasets]]`, `[[datasets.subsets]]`, each level over the one before."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lora_ext.config.contradictions import contradictions
from lora_ext.config.fields import parse_value
from lora_ext.config.train_config import TrainConfig, all_settings
from lora_ext.dataset.folders import Terms
from lora_ext.dataset.options import run_sizing, subset_options
from lora_ext.protocols import ConfigError

SUBSET_OPTIONS = (
    "num_repeats", "class_tokens", "caption_extension", "caption_prefix", "caption_suffix", "caption_separator",
    "keep_tokens", "keep_tokens_separator", "secondary_separator", "shuffle_caption", "enable_wildcard",
    "caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "token_warmup_min",
    "token_warmup_step", "flip_aug", "color_aug", "random_crop", "face_crop_aug_range", "resize_interpolation",
)  # fmt: skip
"""Keys of every level."""
DATASET_OPTIONS = (
    "batch_size", "resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps",
    "bucket_no_upscale", "validation_split", "validation_seed",
)  # fmt: skip
"""Keys of `[general]` and `[[datasets]]`: the pictures of one dataset share them."""
SUBSET_ONLY = ("image_dir", "metadata_file", "conditioning_data_dir", "is_reg", "alpha_mask")
"""Keys of `[[datasets.subsets]]` alone."""
NOT_NEEDED = {
    "cache_info": "pictures are looked through quickly enough without it",
    "custom_attributes": "it only matters to trainers of other networks",
    "network_multiplier": "it only matters to trainers of other networks",
}
"""Keys of sd-scripts that do nothing here, and why."""

_NOT_FOR_REG: dict[str, Any] = {"num_repeats": 1, "class_tokens": "", "conditioning_data_dir": ""}
"""What regularisation pictures have where the file says nothing, whatever the settings of the run say."""

_INTERPOLATIONS = {"linear": "bilinear", "cubic": "bicubic"}


@dataclass(frozen=True)
class SubsetEntry:
    """One `[[datasets.subsets]]`: the paths as they stand in the file; `place` says where in it."""

    place: str
    image_dir: str
    metadata_file: str
    terms: Terms


@dataclass(frozen=True)
class _Level:
    """One table of the file with the keys that it may hold."""

    place: str
    values: Mapping[str, Any]
    allowed: tuple[str, ...]


def read_dataset_tables(
    document: Mapping[str, Any], file: str, config: TrainConfig
) -> tuple[list[SubsetEntry], list[str]]:
    """The subsets of a dataset file over the settings of a run, and notes on keys that do nothing here.

    Raises ConfigError with everything that is wrong with the file at once.
    """
    problems = [
        f"{file}: {name}: a dataset file holds [general] and [[datasets]] alone"
        for name in document
        if name not in ("general", "datasets")
    ]
    general = _Level(f"{file}, [general]", document.get("general", {}), SUBSET_OPTIONS + DATASET_OPTIONS)
    levels = [general]
    entries: list[SubsetEntry] = []
    for number, tables in enumerate(_tables(document, "datasets", file, problems), 1):
        place = f"{file}, [[datasets]] {number}"
        own = {name: value for name, value in tables.items() if name != "subsets"}
        dataset = _Level(place, own, SUBSET_OPTIONS + DATASET_OPTIONS)
        levels.append(dataset)
        for position, values in enumerate(_tables(tables, "subsets", place, problems), 1):
            subset = _Level(f"{place}, subset {position}", values, SUBSET_OPTIONS + SUBSET_ONLY)
            levels.append(subset)
            if not any(_problems_of(level) for level in (general, dataset, subset)):
                entry, wrong = _entry([general, dataset, subset], number, config)
                problems += wrong
                entries += [entry] if entry else []
    problems += [problem for level in levels for problem in _problems_of(level)]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return entries, _notes(levels)


def _entry(levels: list[_Level], number: int, config: TrainConfig) -> tuple[SubsetEntry | None, list[str]]:
    """The last level's subset, and what is wrong with all three together."""
    place, own = levels[-1].place, levels[-1].values
    if not own.get("image_dir") and not own.get("metadata_file"):
        return None, [f"{place}: image_dir is missing: give the folder of its pictures (or a metadata_file)"]
    values: dict[str, Any] = {}
    for level in levels:
        values |= {name: value for name, value in level.values.items() if name not in NOT_NEEDED}
    extension = values.pop("caption_extension", "").strip().lstrip(".").lower()
    settings = dict(
        _setting(name, value) for name, value in values.items() if name not in ("image_dir", "metadata_file", "is_reg")
    )
    own_config = _with_settings(config, settings)
    fighting = [text for names, text in contradictions(own_config) if settings.keys() & set(names)]
    if fighting:
        return None, [f"{place}: {text}" for text in fighting]
    options = subset_options(own_config)
    if extension:
        options = replace(options, caption_extension=f".{extension}")
    is_reg = bool(own.get("is_reg", False))
    if is_reg:  # the settings' own are those of the pictures that are trained on
        options = replace(options, **{name: value for name, value in _NOT_FOR_REG.items() if name not in settings})
    terms = Terms(options, run_sizing(own_config), is_reg, number - 1)
    image_dir, metadata_file = (str(own.get(name, "")).strip() for name in ("image_dir", "metadata_file"))
    return SubsetEntry(place, image_dir, metadata_file, terms), []


def _with_settings(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """The configuration with some settings' values, which fit them."""
    known = all_settings()
    for name, value in settings.items():
        group = known[name].group
        changed = replace(getattr(config, group), **{name: parse_value(known[name], value)[0]})
        config = replace(config, **{group: changed})
    return config


def _setting(name: str, value: Any) -> tuple[str, Any]:
    """A key and its value under the name and in the form of the settings."""
    if name == "batch_size":
        return "train_batch_size", value
    if isinstance(value, list):
        return name, ",".join(str(part) for part in value)
    if name == "resize_interpolation" and isinstance(value, str):
        return name, _INTERPOLATIONS.get(value, value)
    return name, value


def _problems_of(level: _Level) -> list[str]:
    """Keys that the level may not hold, and values that do not fit their keys."""
    if not isinstance(level.values, dict):
        return [f"{level.place} is to be a table"]
    found = (_problem(level, name, value) for name, value in level.values.items())
    return [f"{level.place}: {problem}" for problem in found if problem]


def _problem(level: _Level, name: str, value: Any) -> str | None:
    if name in NOT_NEEDED:
        return None
    if name not in level.allowed:
        elsewhere = "[[datasets]] or [general]" if name in DATASET_OPTIONS else "[[datasets.subsets]]"
        if name in SUBSET_OPTIONS + DATASET_OPTIONS + SUBSET_ONLY:
            return f"{name} belongs into {elsewhere}"
        return unknown_key(name, level.allowed)
    if name in ("image_dir", "metadata_file", "caption_extension"):
        return None if isinstance(value, str) else f"{name} = {value!r}: allowed is text"
    if name == "is_reg":
        return None if isinstance(value, bool) else f"{name} = {value!r}: allowed is true or false"
    if isinstance(value, list) and name not in ("resolution", "face_crop_aug_range"):
        return f"{name} = {value!r}: allowed is one value"
    setting, text = _setting(name, value)
    problem = parse_value(all_settings()[setting], text)[1]
    return problem.replace(setting, name, 1) if problem else None


def unknown_key(name: str, allowed: Collection[str]) -> str:
    """The message for a key that there is none of, with the nearest ones."""
    near = difflib.get_close_matches(name, allowed, n=3, cutoff=0.6)
    return f"{name}: there is no such key; " + (
        f"did you mean {' or '.join(near)}?" if near else f"allowed are {', '.join(allowed)}"
    )


def _notes(levels: Iterable[_Level]) -> list[str]:
    """What is said of keys that do nothing here."""
    named = dict.fromkeys(name for level in levels for name in level.values if name in NOT_NEEDED)
    return [f"{name} in the dataset file does nothing here: {NOT_NEEDED[name]}" for name in named]


def _tables(parent: Mapping[str, Any], name: str, place: str, problems: list[str]) -> list[Mapping[str, Any]]:
    """The tables of a list in a table; a list that is none, or empty, is a problem."""
    found = parent.get(name)
    if not isinstance(found, list) or not found:
        there = "it is empty" if found == [] else "it is missing" if found is None else f"it is {found!r}"
        problems.append(f"{place}: {name} is to be a list of tables, and {there}")
        return []
    problems += [f"{place}: {name} holds {each!r}, which is no table" for each in found if not isinstance(each, dict)]
    return [each for each in found if isinstance(each, dict)]
