"""sd-scripts' metadata files: .json (`{picture: {caption, tags}}`) and .jsonl (a picture a line)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ext.dataset.dataset_paths import is_there
from lora_ext.dataset.folder_scan import FolderReader
from lora_ext.dataset.folders import ImageEntry, Subset, some_of
from lora_ext.dataset.image_formats import IMAGE_EXTENSIONS
from lora_ext.dataset.options import SubsetOptions
from lora_ext.protocols import UserError

_IGNORED = {
    "train_resolution": "each picture's bucket is chosen anew",
    "image_size": "sizes are read from the pictures",
}


def scan_metadata(place: str, file: Path, image_dir: Path | None, reader: FolderReader) -> None:
    """Add the pictures that a metadata file names; paths that are not absolute start from `image_dir`, or its folder.

    Raises UserError where the file cannot be read or none of its pictures can be trained on; what is wrong with single
    ones is collected in the scan's `problems`. `place` says where the file is named.
    """
    metadata = read_metadata(file)
    folder = image_dir or file.parent
    options = reader.terms.options
    subset = Subset(folder, options.num_repeats, options.class_tokens, [], reader.terms, file)
    captions: dict[Path, str] = {}
    for key, values in metadata.items():
        path = _picture(folder, key)
        if path is None:
            reader.scan.problems.append(f"{file}: {key}: there is no such picture in {folder}")
        else:
            captions[path] = metadata_caption(values, options)
    for path, facts in reader.inspected(list(captions)):
        caption = captions[path]
        subset.images.append(
            ImageEntry(
                path, facts.width, facts.height, caption or subset.concept, file if caption else None,
                facts.transparent, facts.content_hash,
            )
        )  # fmt: skip
    if not subset.images:
        reasons = "".join(f"\n  - {problem}" for problem in reader.scan.problems)
        raise UserError(f"{place} = {file}: it names no picture that can be trained on{reasons}")
    reader.scan.subsets.append(subset)
    reader.scan.warnings += _notes(file, metadata)


def read_metadata(file: Path) -> dict[str, dict[str, Any]]:
    """What a metadata file says of each picture; UserError names the line or the picture that is wrong."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check the path") from error
    found = _from_lines(file, text) if file.suffix.lower() == ".jsonl" else parse_json(str(file), text)
    if not isinstance(found, dict):
        raise UserError(f"{file}: a metadata file is an object of pictures: {{'a.png': {{'caption': 'a cat'}}}}")
    for key, values in found.items():
        if not isinstance(values, dict):
            raise UserError(f"{file}: {key}: allowed is an object with caption and tags, and this is {values!r}")
        for name in ("caption", "tags"):
            if not _is_text(values.get(name, "")):
                raise UserError(f"{file}: {key}: {name} = {values[name]!r}: allowed is text")
    return found


def parse_json(name: str, text: str) -> Any:
    """The document in a JSON text; UserError names the line that is wrong."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{name}, line {error.lineno}, column {error.colno}: this is no JSON ({error.msg})") from error
    except RecursionError as error:
        raise UserError(f"{name}: this JSON is nested too deeply to be a dataset") from error


def metadata_caption(values: Mapping[str, Any], options: SubsetOptions) -> str:
    """Caption and tags of a picture as one caption; with wildcards the tags follow each of the caption's lines."""
    separator = options.caption_separator
    caption, tags = (str(_joined(values.get(name, ""), separator)).strip() for name in ("caption", "tags"))
    if not options.enable_wildcard:
        return separator.join(part for part in (caption, tags) if part)
    tags = separator.join(tags.split("\n"))
    lines = [line.strip() for line in caption.split("\n") if line.strip()] or [""]
    return "\n".join(separator.join(part for part in (line, tags) if part) for line in lines)


def _from_lines(file: Path, text: str) -> dict[str, dict[str, Any]]:
    """A .jsonl file's pictures."""
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{file}, line {number}: this is no JSON ({error})") from error
        key = values.pop("image_path", None) if isinstance(values, dict) else None
        if not isinstance(key, str):
            raise UserError(f'{file}, line {number}: "image_path" is missing, the path of the picture')
        found[key] = values
    return found


def _is_text(value: Any) -> bool:
    return (
        value is None or isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))
    )


def _joined(value: Any, separator: str) -> str:
    """Text, or a list of texts, as one."""
    return separator.join(value) if isinstance(value, list) else value or ""


def _picture(folder: Path, key: str) -> Path | None:
    """The file of a picture that may be named without its extension."""
    path = folder / key
    candidates = [path, *(Path(f"{path}{extension}") for extension in IMAGE_EXTENSIONS)]
    return next((each for each in candidates if is_there(each) and each.is_file()), None)


def _notes(file: Path, metadata: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is said of keys that are not used."""
    names = dict.fromkeys(name for values in metadata.values() for name in values if name not in ("caption", "tags"))
    notes = [f"{file.name}: {name} is not used: {_IGNORED[name]}" for name in names if name in _IGNORED]
    others = [name for name in names if name not in _IGNORED]
    return notes + ([f"{file.name}: {some_of(others)}: not used, unknown here"] if others else [])
