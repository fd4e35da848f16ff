"""Folders of pictures and captions: what is there, what is broken, what is left out."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from lora_ext.config.train_config import all_settings
from lora_ext.dataset.caption_files import (
    UnreadableCaptionError,
    captions_by_stem,
    choose_caption_file,
    extensions_to_read,
    read_caption_file,
)
from lora_ext.dataset.images import BrokenImageError, ImageFacts, inspect_image
from lora_ext.dataset.options import Sizing, SubsetOptions
from lora_ext.dataset.regularisation import raised_repeats
from lora_ext.protocols import UserError

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LONGEST_TO_SHORTEST_SIDE = 32
"""Pictures that are longer than so many times their short side are refused: scaled to cover, they fill the memory."""

_REPEATS_AND_NAME = re.compile(r"([0-9]+)_(.+)", re.DOTALL)


@dataclass(frozen=True)
class ImageEntry:
    """One picture and its caption. Width and height are in pixels, EXIF orientation applied.

    With wildcards the caption holds all lines of its file, otherwise the first alone.
    """

    path: Path
    width: int
    height: int
    caption: str
    caption_file: Path | None
    transparent: bool = False
    content_hash: str = ""
    further_caption_lines: int = 0


@dataclass(frozen=True)
class Terms:
    """How the pictures of a source are trained; those of one `dataset` (its number) share batches and `sizing`."""

    options: SubsetOptions = field(default_factory=SubsetOptions)
    sizing: Sizing = field(default_factory=Sizing)
    is_reg: bool = False
    dataset: int = 0


@dataclass
class Subset:
    """The pictures of one folder or metadata file; `concept` is the caption of those that have none."""

    folder: Path
    repeats: int
    concept: str
    images: list[ImageEntry] = field(default_factory=list)
    terms: Terms = field(default_factory=Terms)

    @property
    def options(self) -> SubsetOptions:
        """How its pictures and captions are treated."""
        return self.terms.options

    @property
    def sizing(self) -> Sizing:
        """The sizes that its pictures are trained in."""
        return self.terms.sizing

    @property
    def is_reg(self) -> bool:
        """Whether these are regularisation pictures."""
        return self.terms.is_reg


@dataclass(frozen=True)
class Member:
    """A picture of a scan with its subset; `repeats` is how often it comes up in an epoch, 0 where it is not used."""

    entry: ImageEntry
    subset: Subset
    repeats: int


@dataclass
class DatasetScan:
    """What a dataset folder holds. `problems` keep a run from starting, `warnings` do not."""

    subsets: list[Subset] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def images(self) -> list[ImageEntry]:
        """All pictures, folder by folder."""
        return [entry for subset in self.subsets for entry in subset.images]

    @property
    def members(self) -> list[Member]:
        """All pictures in the order of `images`, with their repeats: those of regularisation pictures are raised."""
        repeats: dict[int, list[int]] = {}
        for number in {subset.terms.dataset for subset in self.subsets}:
            subsets = [each for each in self.subsets if each.terms.dataset == number]
            trained = sum(each.repeats * len(each.images) for each in subsets if not each.is_reg)
            own = [each.repeats for each in subsets if each.is_reg for _ in each.images]
            repeats[number] = raised_repeats(own, trained)
        raised = {number: iter(counts) for number, counts in repeats.items()}
        return [
            Member(entry, each, next(raised[each.terms.dataset]) if each.is_reg else each.repeats)
            for each in self.subsets
            for entry in each.images
        ]

    def raise_on_problems(self) -> None:
        """Raise UserError with all problems together, if there are any."""
        if self.problems:
            count = len(self.problems)
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            raise UserError(f"{count} problem{'s' if count != 1 else ''} in the dataset:\n{lines}")


@dataclass(frozen=True)
class _Listing:
    """A folder's content, sorted by name; names that begin with a dot are left out."""

    folder: Path
    pictures: tuple[Path, ...]
    others: tuple[Path, ...]
    folders: tuple[Path, ...]


def scan_folder(setting: str, text: str, terms: Terms, scan: DatasetScan) -> None:
    """Add what the folder named by a setting holds: N_name folders, or pictures that lie in it.

    Raises UserError where there is no folder, or nothing in it that can be trained on; single broken pictures and
    captions are collected in the scan's `problems`.
    """
    listing = _list_folder(existing_folder(setting, text))
    before = len(scan.subsets)
    if not _add_concept_folders(listing, terms, scan) and listing.pictures:
        named = _repeats_and_concept(listing.folder.name)
        repeats, concept = named or (terms.options.num_repeats, terms.options.class_tokens)
        _add_subset(listing, repeats, concept, terms, scan)
    if not any(subset.images for subset in scan.subsets[before:]):
        raise UserError(_nothing_found(setting, listing, scan))


def existing_folder(setting: str, text: str) -> Path:
    """The folder that a setting names; UserError where there is none."""
    if not text.strip():
        raise UserError(f"{setting} is empty: give the folder that holds the pictures")
    folder = Path(text.strip().strip('"')).expanduser()  # Windows copies paths in quotes
    if folder.is_file():
        raise UserError(f"{setting} = {folder}: this is a file; give the folder it lies in, {folder.parent}")
    if not folder.is_dir():
        absolute = Path(os.path.abspath(folder))
        nearest = next((parent for parent in absolute.parents if parent.is_dir()), absolute.anchor)
        raise UserError(
            f"{setting} = {folder}: there is no such folder (the nearest that exists is {nearest}); check the spelling"
        )
    return Path(os.path.abspath(folder))


def _list_folder(folder: Path) -> _Listing:
    try:
        paths = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read ({error.strerror}): check its permissions") from error
    files = [path for path in paths if path.is_file()]
    pictures = tuple(path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS)
    others = tuple(path for path in files if path.suffix.lower() not in IMAGE_EXTENSIONS)
    return _Listing(folder, pictures, others, tuple(path for path in paths if path.is_dir()))


def _repeats_and_concept(folder_name: str) -> tuple[int, str] | None:
    """(10, "cat") of "10_cat", None of any other name."""
    match = _REPEATS_AND_NAME.fullmatch(folder_name)
    return (int(match[1]), match[2].strip()) if match else None


def _add_concept_folders(listing: _Listing, terms: Terms, scan: DatasetScan) -> bool:
    """Add the N_name folders in a folder; False where none of them holds pictures."""
    before = len(scan.subsets)
    for folder in listing.folders:
        inner = _list_folder(folder)
        if not inner.pictures:
            continue
        named = _repeats_and_concept(folder.name)
        if named is None:
            scan.warnings.append(
                f"{folder.name}: {_count(len(inner.pictures), 'picture')} left out, because the folder is not called "
                f"N_name (N repeats): rename it, for example to 1_{folder.name}"
            )
        else:
            _add_subset(inner, *named, terms, scan)
    added = len(scan.subsets) > before
    if added and listing.pictures:
        scan.warnings.append(
            f"{_count(len(listing.pictures), 'picture')} beside the N_name folders left out "
            f"({listing.pictures[0].name}, …): move them into one of these folders to train on them"
        )
    return added


def _add_subset(listing: _Listing, repeats: int, concept: str, terms: Terms, scan: DatasetScan) -> None:
    """Read a folder's pictures and captions into `scan`."""
    highest = int(all_settings()["num_repeats"].maximum or 0)
    if repeats < 1:
        scan.warnings.append(f"{listing.folder.name}: left out, because its name asks for 0 repeats")
        return
    if repeats > highest:
        scan.problems.append(
            f"{listing.folder.name}: its name asks for {repeats} repeats, allowed are 1 to {highest}: rename the folder"
        )
        return
    subset = Subset(listing.folder, repeats, concept or terms.options.class_tokens, [], terms)
    captions = captions_by_stem(listing.others)
    inspected = _inspect_all(listing.pictures)
    for path, facts in zip(listing.pictures, inspected, strict=True):
        problem = facts if isinstance(facts, str) else _too_narrow(facts)
        if isinstance(facts, ImageFacts) and problem is None:
            subset.images.append(_entry(path, facts, captions.get(path.stem, {}), subset, scan))
        else:
            scan.problems.append(f"{path}: {problem}")
    scan.subsets.append(subset)
    _warn_of_captions(listing, captions, terms.options.caption_extension, scan)
    for folder in listing.folders if _repeats_and_concept(listing.folder.name) else ():
        count = len(_list_folder(folder).pictures)
        if count:
            scan.warnings.append(
                f"{listing.folder.name}/{folder.name}: {_count(count, 'picture')} left out, because folders inside an "
                "N_name folder are not read: move them up"
            )


def _inspect_all(paths: Sequence[Path]) -> list[ImageFacts | str]:
    """Facts of each picture, or in words what is wrong with it."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(_facts_or_problem, paths))


def _facts_or_problem(path: Path) -> ImageFacts | str:
    try:
        return inspect_image(path)
    except BrokenImageError as error:
        return f"broken picture ({error}): replace or delete it"


def _too_narrow(facts: ImageFacts) -> str | None:
    if max(facts.width, facts.height) <= LONGEST_TO_SHORTEST_SIDE * min(facts.width, facts.height):
        return None
    return f"{facts.width}×{facts.height} pixels is narrower than 1:{LONGEST_TO_SHORTEST_SIDE}: crop or delete it"


def _entry(
    path: Path,
    facts: ImageFacts,
    captions: dict[str, Path],
    subset: Subset,
    scan: DatasetScan,
) -> ImageEntry:
    caption, further_lines = subset.concept, 0
    caption_path = choose_caption_file(captions, subset.options.caption_extension)
    if caption_path is not None:
        try:
            read = read_caption_file(caption_path)
            caption = "\n".join(read.lines) if subset.options.enable_wildcard else read.text
            further_lines = read.further_lines
        except UnreadableCaptionError as error:
            scan.problems.append(f"{caption_path}: {error}")
    return ImageEntry(
        path, facts.width, facts.height, caption, caption_path, facts.transparent, facts.content_hash, further_lines
    )


def _warn_of_captions(
    listing: _Listing, captions: dict[str, dict[str, Path]], caption_extension: str, scan: DatasetScan
) -> None:
    """Warn of caption files that are not used."""
    stems = {path.stem for path in listing.pictures}
    name = listing.folder.name
    orphans = [path.name for stem, found in captions.items() if stem not in stems for path in found.values()]
    if orphans:
        scan.warnings.append(
            f"{name}: {_count(len(orphans), 'caption file')} without a picture ({some_of(orphans)}): "
            "name each like its picture"
        )
    read = extensions_to_read(caption_extension)
    both = [stem for stem in stems & captions.keys() if len(captions[stem]) > 1]
    if both and len(read) > 1:
        scan.warnings.append(
            f"{name}: {_count(len(both), 'picture')} with both a .txt and a .caption file ({some_of(sorted(both))}): "
            "the .txt is read; delete one of the two, or set caption_extension"
        )
    unread = [stem for stem in stems & captions.keys() if not set(captions[stem]).intersection(read)]
    if unread:
        scan.warnings.append(
            f"{name}: {_count(len(unread), 'picture')} with a caption file of another extension than "
            f"{caption_extension} ({some_of(sorted(unread))}), which is not read: set caption_extension = auto"
        )


def _nothing_found(setting: str, listing: _Listing, scan: DatasetScan) -> str:
    """Why there is nothing to train on, and what was looked for."""
    looked_for = ", ".join(extension[1:] for extension in IMAGE_EXTENSIONS)
    message = (
        f"{setting} = {listing.folder}: no pictures to train on "
        f"(looked for {looked_for} in the folder and in N_name folders in it, such as 10_{listing.folder.name})"
    )
    hints = [
        f"{folder} holds N_name folders: give that one"
        for folder in listing.folders
        if any(_repeats_and_concept(inner.name) for inner in _list_folder(folder).folders)
    ]
    return "\n".join([message, *(f"  - {each}" for each in hints + scan.problems + scan.warnings)])


def some_of(names: Sequence[str], limit: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
