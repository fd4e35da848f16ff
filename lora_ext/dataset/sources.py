"""From the settings to everything that is trained on, whatever form the dataset comes in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_ext.config.given_path import given_path
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.class_pictures import ClassPictures, add_class_pictures, scan_class_folder
from lora_ext.dataset.concepts import Concept, read_concepts, scan_concept
from lora_ext.dataset.dataset_paths import check_path_in_file, is_there, path_in_file
from lora_ext.dataset.dataset_toml import SubsetEntry, read_dataset_tables
from lora_ext.dataset.folder_scan import FolderReader, Inspect, existing_folder, scan_folder
from lora_ext.dataset.folders import DatasetScan, Terms
from lora_ext.dataset.images import inspect_image
from lora_ext.dataset.masks import mask_problems
from lora_ext.dataset.metadata_files import parse_json, scan_metadata
from lora_ext.dataset.options import run_sizing, subset_options
from lora_ext.protocols import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FILE_SUFFIXES = (".toml", ".json", ".jsonl")


@dataclass(frozen=True)
class Source:
    """One part of a dataset: the paths that it is read from, and what reads it into a scan."""

    paths: tuple[Path, ...]
    read: Callable[[DatasetScan, Inspect], None]


def scan_dataset(config: TrainConfig, inspect: Inspect = inspect_image) -> DatasetScan:
    """Look through the dataset of the settings; `inspect` gives the facts of each picture.

    Raises UserError where there is none, or nothing in it that can be trained on; single broken pictures and captions
    are collected in the result's `problems`.
    """
    scan = DatasetScan()
    sources, notes = read_sources(config)
    problems: list[str] = []
    for source in sources:
        try:
            source.read(scan, inspect)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    scan.warnings += notes
    _leave_out_doubles(scan)
    if all(subset.is_reg for subset in scan.subsets):
        raise UserError(
            f"{', '.join(subset.name for subset in scan.subsets)}: regularisation pictures alone (is_reg), without any "
            "to train on: add a folder of the subject's pictures"
        )
    scan.problems += mask_problems(scan) if config.loss.masked_loss else []
    return scan


def read_sources(config: TrainConfig) -> tuple[list[Source], list[str]]:
    """What the dataset of the settings is read from, and notes on what is not used; no picture is looked at yet."""
    text = config.dataset.dataset_config.strip()
    if not text:
        return _folder_sources(config), []
    file = dataset_file(text)
    if file is not None and file.suffix.lower() == ".jsonl":
        return [_metadata_source(config, file)], _not_used(config, "reg_data_dir", "num_class_images")
    document = _document(file, text)
    if isinstance(document, dict) and "concepts_list" in document:
        document = document["concepts_list"]
    if isinstance(document, list):
        return _concept_sources(config, document, file)
    if not isinstance(document, dict):
        raise UserError(f"{file or 'dataset_config'}: allowed are tables of datasets, metadata or a list of concepts")
    if not {"datasets", "general"} & document.keys() and _is_json(file, text):
        if file is None:
            raise UserError("dataset_config: metadata can only be read from a file: give the path of the .json")
        return [_metadata_source(config, file)], _not_used(config, "reg_data_dir", "num_class_images")
    return _table_sources(config, document, file)


def dataset_file(text: str) -> Path | None:
    """The file that the setting `dataset_config` names, None where it is the text itself.

    Raises UserError where it is neither.
    """
    line = text.strip().strip('"')
    if "\n" in line or line.startswith(("[", "{")):
        return None
    path = given_path(line)
    is_file = is_there(path) and path.is_file()
    if not is_file or path.suffix.lower() not in _FILE_SUFFIXES:
        wrong = "this is no dataset file" if is_file else "there is no such file"
        raise UserError(
            f"dataset_config = {line}: {wrong}; give a dataset .toml, a metadata .json or .jsonl, or a list of "
            "concepts .json, or the text of such a file"
        )
    return path


def _folder_sources(config: TrainConfig) -> list[Source]:
    """The folders of the settings."""
    settings = config.dataset
    terms = Terms(subset_options(config), run_sizing(config))

    def read_trained(scan: DatasetScan, inspect: Inspect) -> None:
        scan_folder("train_data_dir", settings.train_data_dir, terms, scan, inspect)

    def read_reg(scan: DatasetScan, inspect: Inspect) -> None:
        _scan_regularisation(config, scan, inspect)

    sources = [Source((given_path(settings.train_data_dir),), read_trained)]
    if settings.reg_data_dir.strip():
        sources.append(Source((given_path(settings.reg_data_dir),), read_reg))
    return sources


def _scan_regularisation(config: TrainConfig, scan: DatasetScan, inspect: Inspect) -> None:
    """Add the regularisation pictures of the settings, those that are still to be drawn too."""
    settings = config.dataset
    wanted, prompt = settings.num_class_images, " ".join(settings.class_prompt.split())
    options = replace(subset_options(config), class_tokens=prompt, conditioning_data_dir="", num_repeats=1)
    terms = Terms(options, run_sizing(config), is_reg=True)
    folder = scan_class_folder("reg_data_dir", settings.reg_data_dir, wanted, terms, scan, inspect)
    add_class_pictures(ClassPictures(folder, [prompt], wanted), terms, scan, config.learning.seed)


def _metadata_source(config: TrainConfig, file: Path) -> Source:
    """A metadata file of the settings; relative paths in it start from train_data_dir."""
    terms = Terms(subset_options(config), run_sizing(config))
    text = config.dataset.train_data_dir
    image_dir = existing_folder("train_data_dir", text) if text.strip() else None

    def read(scan: DatasetScan, inspect: Inspect) -> None:
        scan_metadata("dataset_config", file, image_dir, FolderReader(terms, scan, inspect))

    return Source((file, image_dir or file.parent), read)


def _concept_sources(config: TrainConfig, document: list[Any], file: Path | None) -> tuple[list[Source], list[str]]:
    """The concepts of a list of sd_dreambooth."""
    name = file.name if file else "dataset_config"
    concepts, notes = read_concepts(document, name)
    terms = Terms(subset_options(config), run_sizing(config))
    sources = [_concept_source(concept, file, terms, config.learning.seed) for concept in concepts]
    return sources, notes + _not_used(config, "train_data_dir", "reg_data_dir", "num_class_images")


def _concept_source(concept: Concept, file: Path | None, terms: Terms, seed: int) -> Source:
    named = (concept.instance_data_dir, concept.class_data_dir)
    own, classes = (str(path_in_file(text, file)) if text.strip() else "" for text in named)

    def read(scan: DatasetScan, inspect: Inspect) -> None:
        check_path_in_file(f"{concept.place}: instance_data_dir", concept.instance_data_dir, file)
        there = replace(concept, instance_data_dir=own, class_data_dir=classes)
        scan_concept(there, file or Path("dataset_config"), terms, seed, scan, inspect)

    return Source(tuple(Path(each) for each in (own, classes) if each), read)


def _table_sources(
    config: TrainConfig, document: Mapping[str, Any], file: Path | None
) -> tuple[list[Source], list[str]]:
    """The subsets of a dataset file of sd-scripts."""
    entries, notes = read_dataset_tables(document, file.name if file else "dataset_config", config)
    notes += _not_used(config, "train_data_dir", "reg_data_dir", "num_class_images")
    return [_subset_source(entry, file) for entry in entries], notes


def _subset_source(entry: SubsetEntry, file: Path | None) -> Source:
    named = {
        "image_dir": entry.image_dir,
        "metadata_file": entry.metadata_file,
        "conditioning_data_dir": entry.terms.options.conditioning_data_dir,
    }
    paths = {name: path_in_file(text, file) for name, text in named.items() if text}
    options = replace(entry.terms.options, conditioning_data_dir=str(paths.get("conditioning_data_dir", "")))
    terms = replace(entry.terms, options=options)

    def read(scan: DatasetScan, inspect: Inspect) -> None:
        for name in paths:
            check_path_in_file(f"{entry.place}: {name}", named[name], file)
        place = f"{entry.place}: {'metadata_file' if entry.metadata_file else 'image_dir'}"
        if entry.metadata_file:
            reader = FolderReader(terms, scan, inspect)
            scan_metadata(place, paths["metadata_file"], paths.get("image_dir"), reader)
        else:
            scan_folder(place, str(paths["image_dir"]), terms, scan, inspect, flat=True)

    return Source(tuple(paths.values()), read)


def _not_used(config: TrainConfig, *names: str) -> list[str]:
    """What is said of those of these settings that are given, and that a dataset file stands in for."""
    given = [name for name in names if str(getattr(config.dataset, name)).strip() not in ("", "0")]
    return [f"{' and '.join(given)}: not used, because dataset_config says what is trained on"] if given else []


def _document(file: Path | None, text: str) -> Any:
    """The TOML or JSON document of a dataset file, or of the text itself; UserError where it is none."""
    name = file.name if file else "dataset_config"
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): check its permissions") from error
    if _is_json(file, text):
        return parse_json(name, text)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = "; write paths with / or in 'single quotes'" if "\\" in text else ""
        raise UserError(f"{name} cannot be read as TOML: {error}{hint}") from error
    except RecursionError as error:
        raise UserError(f"{name}: this TOML is nested too deeply to be a dataset") from error


def _is_json(file: Path | None, text: str) -> bool:
    """Whether a document is JSON: by its file's name, or by its beginning; TOML tables begin with [ and a name."""
    if file is not None:
        return file.suffix.lower() == ".json"
    beginning = text.lstrip()
    return beginning.startswith("{") or (beginning[:1] == "[" and beginning[1:].lstrip()[:1] in ("{", "]"))


def _leave_out_doubles(scan: DatasetScan) -> None:
    """Of subsets of one dataset with the same pictures only the first is used, as in sd-scripts."""
    seen: set[tuple[int, Path]] = set()
    kept = []
    for subset in scan.subsets:
        key = (subset.terms.dataset, subset.metadata_file or subset.folder)
        if key in seen:
            scan.warnings.append(
                f"{subset.name} stands twice in one dataset: only the first is used; raise its num_repeats instead"
            )
        else:
            kept.append(subset)
        seen.add(key)
    scan.subsets = kept
