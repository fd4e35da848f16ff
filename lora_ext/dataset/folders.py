"""What a dataset is made of: pictures with captions, in subsets, under the terms on which they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_ext.dataset.buckets import Bucket, choose_bucket
from lora_ext.dataset.image_formats import IMAGE_EXTENSIONS as IMAGE_EXTENSIONS
from lora_ext.dataset.options import Sizing, SubsetOptions
from lora_ext.dataset.regularisation import raised_repeats
from lora_ext.protocols import UserError


@dataclass(frozen=True)
class PictureOrder:
    """How a picture is drawn that is not there yet."""

    prompt: str
    negative_prompt: str
    steps: int
    cfg_scale: float
    seed: int


@dataclass(frozen=True)
class ImageEntry:
    """One picture and its caption. Width and height are in pixels, EXIF orientation applied.

    With wildcards the caption holds all lines of its file, otherwise the first alone. `order`: it is still to be drawn.
    """

    path: Path
    width: int
    height: int
    caption: str
    caption_file: Path | None
    transparent: bool = False
    content_hash: str = ""
    further_caption_lines: int = 0
    order: PictureOrder | None = None


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
    metadata_file: Path | None = None

    @property
    def name(self) -> str:
        """What it is called in reports and in the network's file."""
        return (self.metadata_file or self.folder).name

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

    @property
    def bucket(self) -> Bucket:
        """Where the picture goes."""
        return choose_bucket(self.entry.width, self.entry.height, self.subset.sizing)


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


def some_of(names: Sequence[str], limit: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def count_of(number: int, noun: str) -> str:
    """ "1 picture", "2 pictures"."""
    return f"{number} {noun}{'s' if number != 1 else ''}"
