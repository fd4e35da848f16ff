"""sd_dreambooth's list of concepts: folders with prompts in which `[filewords]` stands for a picture's own words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_ext.dataset.class_pictures import ClassPictures, add_class_pictures, scan_class_folder
from lora_ext.dataset.dataset_toml import unknown_key
from lora_ext.dataset.folder_scan import Inspect, scan_folder
from lora_ext.dataset.folders import DatasetScan, ImageEntry, Terms
from lora_ext.protocols import ConfigError, UserError

FILEWORDS = "[filewords]"

_TEXTS = (
    "instance_data_dir", "class_data_dir", "instance_prompt", "class_prompt", "instance_token", "class_token",
    "class_negative_prompt",
)  # fmt: skip
_WHOLE_NUMBERS = {"num_class_images": (0, 100000), "num_class_images_per": (0, 1000), "class_infer_steps": (1, 500)}
_NUMBERS = _WHOLE_NUMBERS | {"class_guidance_scale": (1, 100)}
"""The smallest and largest number that is allowed."""
_IGNORED = (
    "n_save_sample", "save_sample_prompt", "save_sample_negative_prompt", "save_sample_template", "sample_seed",
    "save_guidance_scale", "save_infer_steps", "is_valid",
)  # fmt: skip
"""Keys for the program's own samples and state."""
_NUMBERS_IN_FRONT = re.compile(r"^[-\d]+\s*")


@dataclass(frozen=True)
class Concept:
    """One object of the list; `place` says where it stands. Folders are as they stand in the file."""

    place: str
    instance_data_dir: str
    class_data_dir: str = ""
    instance_prompt: str = ""
    class_prompt: str = ""
    instance_token: str = ""
    class_token: str = ""
    class_negative_prompt: str = ""
    num_class_images: int = 0
    num_class_images_per: int = 0
    class_infer_steps: int = 20
    class_guidance_scale: float = 7.0


def read_concepts(document: Sequence[Any], file: str) -> tuple[list[Concept], list[str]]:
    """The concepts of a list, and notes on keys that do nothing here; ConfigError with all that is wrong at once."""
    problems = [] if document else [f"{file}: the list of concepts is empty"]
    concepts: list[Concept] = []
    ignored: dict[str, None] = {}
    for number, values in enumerate(document, 1):
        place = f"{file}, concept {number}"
        wrong = _problems(values) if isinstance(values, dict) else ["allowed is an object with instance_data_dir"]
        problems += [f"{place}: {problem}" for problem in wrong]
        if not wrong:
            ignored |= dict.fromkeys(name for name in values if name in _IGNORED and values[name])
            known = {
                name: value for name, value in values.items() if name in (*_TEXTS, *_NUMBERS) and value is not None
            }
            concepts.append(Concept(place, **known))
    if problems:
        raise ConfigError(problems)
    notes = [f"{', '.join(ignored)} in the list of concepts: not used, see the settings of samples"] if ignored else []
    return concepts, notes


def scan_concept(concept: Concept, file: Path, terms: Terms, seed: int, scan: DatasetScan, inspect: Inspect) -> None:
    """Add a concept's pictures, and those of its class; class pictures that are missing are put in as to be drawn.

    `terms` are those of its own pictures. Raises UserError where a folder is missing or holds nothing to train on.
    """
    before = len(scan.subsets)
    place = f"{concept.place}: instance_data_dir"
    scan_folder(place, concept.instance_data_dir, terms, scan, inspect, flat=True)
    own = scan.subsets[before]
    words = [_file_words(entry) for entry in own.images]
    own.images = [
        replace(
            entry,
            caption=concept_caption(concept.instance_prompt, text, concept, is_class=False),
            caption_file=entry.caption_file or file,
        )
        for entry, text in zip(own.images, words, strict=True)
    ]
    if concept.class_data_dir:
        options = replace(terms.options, class_tokens="", conditioning_data_dir="", num_repeats=1)
        _scan_class(concept, words, replace(terms, options=options, is_reg=True), seed, scan, inspect)


def _scan_class(
    concept: Concept, words: Sequence[str], terms: Terms, seed: int, scan: DatasetScan, inspect: Inspect
) -> None:
    """Add a concept's class pictures; with `[filewords]` they are drawn from the words of its own pictures in turn."""
    wanted = concept.num_class_images or concept.num_class_images_per * len(words)
    before = len(scan.subsets)
    folder = scan_class_folder(f"{concept.place}: class_data_dir", concept.class_data_dir, wanted, terms, scan, inspect)
    for subset in scan.subsets[before:]:
        subset.images = [_with_class_caption(entry, concept) for entry in subset.images]
    prompts = [concept_caption(concept.class_prompt, text, concept, is_class=True) for text in words]
    pictures = ClassPictures(
        folder,
        list(dict.fromkeys(prompts)),
        wanted,
        concept.class_negative_prompt,
        concept.class_infer_steps,
        concept.class_guidance_scale,
    )
    if wanted and not all(prompts):
        raise UserError(f"{concept.place}: class_prompt is empty, from which {wanted} class pictures are to be drawn")
    add_class_pictures(pictures, terms, scan, seed)


def _with_class_caption(entry: ImageEntry, concept: Concept) -> ImageEntry:
    """A class picture with the caption that it has, or one made from the class prompt."""
    if entry.caption_file is not None:
        return entry
    return replace(entry, caption=concept_caption(concept.class_prompt, _file_words(entry), concept, is_class=True))


def concept_caption(prompt: str, words: str, concept: Concept, is_class: bool) -> str:
    """The caption of a picture of a concept, or of its class, as sd_dreambooth makes it.

    `words` stand in for `[filewords]`, which an empty prompt is taken for. A class picture gets the class's word and
    loses the instance's; another one gets the instance's word in place of the class's, or in front.
    """
    text = (prompt or FILEWORDS).replace(FILEWORDS, words)
    instance, kind = concept.instance_token, concept.class_token
    if is_class and kind:
        if instance:
            word = "" if _word(kind).search(text) else kind
            text = _word(instance).sub(lambda _: word, text)
        if not instance or not _word(kind).search(text):
            text = f"{kind}, {text}"
    elif not is_class and instance:
        if not kind:
            text = f"{instance}, {text}"
        elif not _word(instance).search(text):
            replaced, count = _word(kind, r"(?:(?:a|an|the)\s+)?").subn(lambda _: instance, text)
            text = replaced if count else f"{instance}, {text}"
    return " ".join(text.replace("\\", "").split())


def _word(word: str, before: str = "") -> re.Pattern[str]:
    return re.compile(rf"\b{before}{re.escape(word)}\b", re.IGNORECASE)


def _file_words(entry: ImageEntry) -> str:
    """What `[filewords]` stands for: the caption file's words, or the picture's name without numbers in front."""
    return entry.caption if entry.caption_file else _NUMBERS_IN_FRONT.sub("", entry.path.stem)


def _problems(values: dict[str, Any]) -> list[str]:
    """What is wrong with the keys and values of a concept."""
    known = (*_TEXTS, *_NUMBERS, *_IGNORED)
    problems = [unknown_key(name, known) for name in values if name not in known]
    for name in _TEXTS:
        if not isinstance(values.get(name) or "", str):
            problems.append(f"{name} = {values[name]!r}: allowed is text")
    for name, (least, most) in _NUMBERS.items():
        value = values.get(name)
        kind = int if name in _WHOLE_NUMBERS else float
        fits = isinstance(value, int | kind) and value is not True and least <= value <= most
        if value is not None and not fits:
            problems.append(f"{name} = {value!r}: allowed is a number from {least} to {most}")
    if not values.get("instance_data_dir"):
        problems.append("instance_data_dir is missing: give the folder of its pictures")
    return problems
