"""The dataset report: what will be trained on, known before anything is loaded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.buckets import Bucket, Size
from lora_ext.dataset.captions import split_tags
from lora_ext.dataset.folders import DatasetScan, Member, Subset
from lora_ext.dataset.options import Sizing
from lora_ext.dataset.warnings import Inspected, dataset_warnings


@dataclass(frozen=True)
class FolderReport:
    """One folder of the dataset."""

    name: str
    repeats: int
    pictures: int
    concept: str
    is_reg: bool = False


@dataclass(frozen=True)
class DatasetReport:
    """What a dataset comes to.

    `pictures` are those in use; `repeats` counts the pictures of an epoch, repeats included, `buckets` those of each
    (width, height), `reg_repeats` the regularisation pictures among them, `to_draw` those that are drawn first, without
    repeats. Each bucket's last batch may be a partial
    one. `mean_ar_error` is the mean of |bucket's aspect ratio − picture's|, as sd-scripts reports it.
    `tag_frequency` counts pictures by folder name and lower-case tag.
    """

    pictures: int
    captions: int
    missing: int
    repeats: int
    batches_per_epoch: int
    buckets: dict[Size, int]
    mean_ar_error: float
    folders: list[FolderReport]
    problems: list[str]
    warnings: list[str]
    tag_frequency: dict[str, dict[str, int]]
    reg_repeats: int = 0
    to_draw: int = 0

    def summary(self) -> list[str]:
        """Short lines for people; problems and warnings are not among them."""
        names = ", ".join(f"{each.name} ({each.pictures} × {each.repeats})" for each in self.folders)
        sizes = ", ".join(f"{width}×{height}: {count}" for (width, height), count in self.buckets.items())
        without = f", {self.missing} without" if self.missing else ""
        reg = [f"{self.reg_repeats} of them are regularisation pictures"] if self.reg_repeats else []
        drawn = [f"{self.to_draw} class pictures are drawn before the first step"] if self.to_draw else []
        return [
            f"{self.pictures} pictures, {self.captions} with a caption file{without}",
            f"folders (pictures × repeats): {names}",
            f"{self.repeats} pictures an epoch, in {len(self.buckets)} size{'s' if len(self.buckets) != 1 else ''} "
            f"({sizes})",
            *reg,
            *drawn,
        ]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it: bucket sizes as "512x768"."""
        values = asdict(self)
        values["buckets"] = {f"{width}x{height}": count for (width, height), count in self.buckets.items()}
        values["summary"] = self.summary()
        return values


def count_batches(buckets: Mapping[Size, int], batch_size: int) -> int:
    """Σ over buckets of ⌈pictures / batch size⌉."""
    return sum(math.ceil(count / batch_size) for count in buckets.values())


def make_report(
    scan: DatasetScan, config: TrainConfig, token_counter: Callable[[str], int] | None = None
) -> DatasetReport:
    """The report of a scanned dataset; `token_counter` counts a caption's tokens without begin and end marks."""
    members = [member for member in scan.members if member.repeats]
    buckets = [member.bucket for member in members]
    errors = [
        abs(b.size[0] / b.size[1] - m.entry.width / m.entry.height) for b, m in zip(buckets, members, strict=True)
    ]
    captions = sum(member.entry.caption_file is not None for member in members)
    counts = _bucket_counts(members, buckets)
    return DatasetReport(
        pictures=len(members),
        captions=captions,
        missing=len(members) - captions,
        repeats=sum(member.repeats for member in members),
        batches_per_epoch=sum(count_batches(each, sizing.batch_size) for sizing, each in counts.values()),
        buckets=dict(sorted(sum((each for _, each in counts.values()), Counter()).items())),
        mean_ar_error=sum(errors) / len(errors) if errors else 0.0,
        folders=[
            FolderReport(name, subset.repeats, len(subset.images), subset.concept, subset.is_reg)
            for name, subset in _named_subsets(scan)
        ],
        problems=list(scan.problems),
        warnings=dataset_warnings(Inspected(scan, config, members, buckets, token_counter)),
        tag_frequency=tag_frequency(scan),
        to_draw=sum(member.entry.order is not None for member in members),
        reg_repeats=sum(member.repeats for member in members if member.subset.is_reg),
    )


def _bucket_counts(members: Sequence[Member], buckets: Sequence[Bucket]) -> dict[int, tuple[Sizing, Counter[Size]]]:
    """Each dataset's sizing, and how often its buckets come up."""
    counts: dict[int, tuple[Sizing, Counter[Size]]] = {}
    for member, bucket in zip(members, buckets, strict=True):
        terms = member.subset.terms
        counts.setdefault(terms.dataset, (terms.sizing, Counter()))[1][bucket.size] += member.repeats
    return counts


def _named_subsets(scan: DatasetScan) -> list[tuple[str, Subset]]:
    """Each subset with a name of its own: a second "cat" is "cat (2)", as in sd-scripts' metadata."""
    seen: Counter[str] = Counter()
    named = []
    for subset in scan.subsets:
        seen[subset.name] += 1
        named.append((f"{subset.name} ({seen[subset.name]})" if seen[subset.name] > 1 else subset.name, subset))
    return named


def tag_frequency(scan: DatasetScan) -> dict[str, dict[str, int]]:
    """As sd-scripts' ss_tag_frequency counts: subset → lower-case tag → pictures."""
    return {
        name: dict(Counter(tag.lower() for entry in subset.images for tag in split_tags(entry.caption)))
        for name, subset in _named_subsets(scan)
    }
