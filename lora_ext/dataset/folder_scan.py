"""Folders of pictures and captions: what is there, what is broken, what is left out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lora_ext.config.given_path import given_path
from lora_ext.config.train_config import all_settings
from lora_ext.dataset.caption_files import (
    UnreadableCaptionError,
    caption_stems,
    captions_by_stem,
    choose_caption_file,
    extensions_to_read,
    read_caption_file,
)
from lora_ext.dataset.dataset_paths import is_there
from lora_ext.dataset.folders import DatasetScan, ImageEntry, Subset, Terms, count_of, some_of
from lora_ext.dataset.image_formats import IMAGE_EXTENSIONS
from lora_ext.dataset.images import BrokenImageError, ImageFacts, inspect_image
from lora_ext.protocols import UserError

LONGEST_TO_SHORTEST_SIDE = 32
"""Pictures that are longer than so many times their short side are refused: scaled to cover, they fill the memory."""

Inspect = Callable[[Path], ImageFacts]
"""Gives a picture's facts; BrokenImageError where it is broken."""

_REPEATS_AND_NAME = re.compile(r"([0-9]+)_(.+)", re.DOTALL)


@dataclass(frozen=True)
class Listing:
    """A folder's content, sorted by name; names that begin with a dot are left out."""

    folder: Path
    pictures: tuple[Path, ...]
    others: tuple[Path, ...]
    folders: tuple[Path, ...]


def scan_folder(
    setting: str, text: str, terms: Terms, scan: DatasetScan, inspect: Inspect = inspect_image, flat: bool = False
) -> None:
    """Add what the folder named by a setting holds: N_name folders, or pictures that lie in it (`flat`: these alone).

    Raises UserError where there is no folder, or nothing in it that can be trained on; single broken pictures and
    captions are collected in the scan's `problems`.
    """
    listing = list_folder(existing_folder(setting, text))
    before = len(scan.subsets)
    reader = FolderReader(terms, scan, inspect)
    if flat:
        if listing.pictures:
            reader.read(listing, terms.options.num_repeats, terms.options.class_tokens)
        reader.warn_of_inner_folders(listing)
    elif not reader.read_concept_folders(listing) and listing.pictures:
        named = repeats_and_concept(listing.folder.name)
        reader.read(listing, *(named or (terms.options.num_repeats, terms.options.class_tokens)))
    if not any(subset.images for subset in scan.subsets[before:]):
        raise UserError(_nothing_found(setting, listing, scan, flat))


def existing_folder(setting: str, text: str) -> Path:
    """The folder that a setting names; UserError where there is none."""
    if not text.strip():
        raise UserError(f"{setting} is empty: give the folder that holds the pictures")
    folder = given_path(text)
    there = is_there(folder)
    if there and folder.is_file():
        raise UserError(f"{setting} = {folder}: this is a file; give the folder it lies in, {folder.parent}")
    if not there or not folder.is_dir():
        absolute = Path(os.path.abspath(folder))
        nearest = next((parent for parent in absolute.parents if is_there(parent)), absolute.anchor)
        raise UserError(
            f"{setting} = {folder}: there is no such folder (the nearest that exists is {nearest}); check the spelling"
        )
    return Path(os.path.abspath(folder))


def list_folder(folder: Path) -> Listing:
    """What lies in a folder."""
    try:
        paths = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read ({error.strerror}): check its permissions") from error
    files = [path for path in paths if path.is_file()]
    pictures = tuple(path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS)
    others = tuple(path for path in files if path.suffix.lower() not in IMAGE_EXTENSIONS)
    return Listing(folder, pictures, others, tuple(path for path in paths if path.is_dir()))


def repeats_and_concept(folder_name: str) -> tuple[int, str] | None:
    """(10, "cat") of "10_cat", None of any other name."""
    match = _REPEATS_AND_NAME.fullmatch(folder_name)
    return (int(match[1]), match[2].strip()) if match else None


class FolderReader:
    """Reads folders of pictures and captions into a scan."""

    def __init__(self, terms: Terms, scan: DatasetScan, inspect: Inspect = inspect_image) -> None:
        self.terms = terms
        self.scan = scan
        self._inspect = inspect

    def read_concept_folders(self, listing: Listing) -> bool:
        """Add the N_name folders in a folder; False where none of them holds pictures."""
        before = len(self.scan.subsets)
        for folder in listing.folders:
            inner = list_folder(folder)
            if not inner.pictures:
                continue
            named = repeats_and_concept(folder.name)
            if named is None:
                self.scan.warnings.append(
                    f"{folder.name}: {count_of(len(inner.pictures), 'picture')} left out, because the folder is not "
                    f"called N_name (N repeats): rename it, for example to 1_{folder.name}"
                )
            else:
                self.read(inner, *named)
                self.warn_of_inner_folders(inner)
        added = len(self.scan.subsets) > before
        if added and listing.pictures:
            self.scan.warnings.append(
                f"{count_of(len(listing.pictures), 'picture')} beside the N_name folders left out "
                f"({listing.pictures[0].name}, …): move them into one of these folders to train on them"
            )
        return added

    def read(self, listing: Listing, repeats: int, concept: str) -> None:
        """Add the pictures that lie in a folder."""
        highest = int(all_settings()["num_repeats"].maximum or 0)
        if repeats < 1:
            self.scan.warnings.append(f"{listing.folder.name}: left out, because its name asks for 0 repeats")
            return
        if repeats > highest:
            self.scan.problems.append(
                f"{listing.folder.name}: its name asks for {repeats} repeats, allowed are 1 to {highest}: "
                "rename the folder"
            )
            return
        options = self.terms.options
        subset = Subset(listing.folder, repeats, concept or options.class_tokens, [], self.terms)
        captions = captions_by_stem(listing.others, options.caption_extension)
        for path, facts in self.inspected(listing.pictures):
            candidates = next((captions[stem] for stem in caption_stems(path) if stem in captions), {})
            subset.images.append(self._entry(path, facts, candidates, subset))
        self.scan.subsets.append(subset)
        _warn_of_captions(listing, captions, options.caption_extension, self.scan)

    def inspected(self, paths: Sequence[Path]) -> list[tuple[Path, ImageFacts]]:
        """The pictures that can be trained on, with their facts; what is wrong with others goes to the problems."""
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            found = list(pool.map(self._facts_or_problem, paths))
        good: list[tuple[Path, ImageFacts]] = []
        for path, facts in zip(paths, found, strict=True):
            if isinstance(facts, str):
                self.scan.problems.append(f"{path}: {facts}")
            else:
                good.append((path, facts))
        return good

    def _facts_or_problem(self, path: Path) -> ImageFacts | str:
        try:
            facts = self._inspect(path)
        except BrokenImageError as error:
            return f"broken picture ({error}): replace or delete it"
        if max(facts.width, facts.height) > LONGEST_TO_SHORTEST_SIDE * min(facts.width, facts.height):
            return (
                f"{facts.width}×{facts.height} pixels is narrower than 1:{LONGEST_TO_SHORTEST_SIDE}: crop or delete it"
            )
        return facts

    def _entry(self, path: Path, facts: ImageFacts, captions: dict[str, Path], subset: Subset) -> ImageEntry:
        caption, further_lines = subset.concept, 0
        caption_path = choose_caption_file(captions, subset.options.caption_extension)
        if caption_path is not None:
            try:
                read = read_caption_file(caption_path)
                caption = "\n".join(read.lines) if subset.options.enable_wildcard else read.text
                further_lines = read.further_lines
            except UnreadableCaptionError as error:
                self.scan.problems.append(f"{caption_path}: {error}")
        return ImageEntry(
            path, facts.width, facts.height, caption, caption_path, facts.transparent, facts.content_hash, further_lines
        )

    def warn_of_inner_folders(self, listing: Listing) -> None:
        """Warn of pictures in folders inside a folder whose own pictures alone are read."""
        for folder in listing.folders:
            count = len(list_folder(folder).pictures)
            if count:
                self.scan.warnings.append(
                    f"{listing.folder.name}/{folder.name}: {count_of(count, 'picture')} left out, because folders "
                    "inside this one are not read: move them up"
                )


def _warn_of_captions(
    listing: Listing, captions: dict[str, dict[str, Path]], caption_extension: str, scan: DatasetScan
) -> None:
    """Warn of caption files that are not used."""
    stems = {stem for path in listing.pictures for stem in caption_stems(path)}
    name = listing.folder.name
    orphans = [path.name for stem, found in captions.items() if stem not in stems for path in found.values()]
    if orphans:
        scan.warnings.append(
            f"{name}: {count_of(len(orphans), 'caption file')} without a picture ({some_of(orphans)}): "
            "name each like its picture"
        )
    read = extensions_to_read(caption_extension)
    both = [stem for stem in stems & captions.keys() if len(captions[stem]) > 1]
    if both and len(read) > 1:
        scan.warnings.append(
            f"{name}: {count_of(len(both), 'picture')} with both a .txt and a .caption file ({some_of(sorted(both))}): "
            "the .txt is read; delete one of the two, or set caption_extension"
        )
    unread = [stem for stem in stems & captions.keys() if not set(captions[stem]).intersection(read)]
    if unread:
        scan.warnings.append(
            f"{name}: {count_of(len(unread), 'picture')} with a caption file of another extension than "
            f"{caption_extension} ({some_of(sorted(unread))}), which is not read: set caption_extension = auto"
        )


def _nothing_found(setting: str, listing: Listing, scan: DatasetScan, flat: bool) -> str:
    """Why there is nothing to train on, and what was looked for."""
    looked_for = ", ".join(extension[1:] for extension in IMAGE_EXTENSIONS)
    deeper = "" if flat else f" and in N_name folders in it, such as 10_{listing.folder.name}"
    message = f"{setting} = {listing.folder}: no pictures to train on (looked for {looked_for} in the folder{deeper})"
    hints = [
        f"{folder} holds N_name folders: give that one"
        for folder in ([] if flat else listing.folders)
        if any(repeats_and_concept(inner.name) for inner in list_folder(folder).folders)
    ]
    return "\n".join([message, *(f"  - {each}" for each in hints + scan.problems + scan.warnings)])
