"""What is worth saying about a dataset before it is trained on: each warning says what, why, and what to set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.buckets import Bucket, bucket_limits, training_size
from lora_ext.dataset.captions import longest_captions, split_tags
from lora_ext.dataset.folders import DatasetScan, ImageEntry, Member, some_of
from lora_ext.dataset.views import face_of

_UNDERSCORE_IN_WORD = re.compile(r"[A-Za-z0-9]_[A-Za-z0-9]")
_ESCAPED_BRACKET = re.compile(r"\\[()\[\]]")
_DOMINATING_SHARE = 0.8
_CROPPED_SHARE = 0.25
_CONCEPT_IMBALANCE = 3.0


@dataclass(frozen=True)
class Inspected:
    """What warnings are drawn from: the pictures in use, and one bucket for each of them."""

    scan: DatasetScan
    config: TrainConfig
    members: Sequence[Member]
    buckets: Sequence[Bucket]
    token_counter: Callable[[str], int] | None

    @property
    def entries(self) -> list[ImageEntry]:
        """The pictures in use."""
        return [member.entry for member in self.members]


def dataset_warnings(inspected: Inspected) -> list[str]:
    """All warnings, those of the folders first."""
    checks = (_captions, _pictures, _sizes, _tags, _balance, _regularisation, _prefixed, _masks_and_faces)
    return [*inspected.scan.warnings, *(text for check in checks for text in check(inspected))]


def _of(entries: Sequence[ImageEntry], total: int) -> str:
    """Count and names: "3 of 20 pictures (a.png, b.png, c.png)"."""
    return f"{len(entries)} of {total} pictures ({some_of([entry.path.name for entry in entries])})"


def _captions(inspected: Inspected) -> Iterator[str]:
    total = len(inspected.entries)
    for subset in inspected.scan.subsets:
        missing = [entry for entry in subset.images if entry.caption_file is None]
        if missing and subset.concept:
            origin = "the folder's name" if subset.folder.name.endswith(subset.concept) else "its class_tokens"
            yield (
                f"{subset.name}: {_of(missing, len(subset.images))} without a caption file: "
                f'trained as "{subset.concept}", {origin}; write captions to say what else is in them'
            )
        elif missing:
            yield (
                f"{subset.name}: {_of(missing, len(subset.images))} without a caption: trained with an empty "
                "one, which teaches no word; write captions, or name the folder N_name to use its name"
            )
    empty = [entry for entry in inspected.entries if entry.caption_file is not None and not entry.caption]
    if empty:
        yield f"{_of(empty, total)} with an empty caption file: write the caption, or delete the file"
    one_line = [member.entry for member in inspected.members if not member.subset.options.enable_wildcard]
    longer = [entry for entry in one_line if entry.further_caption_lines]
    if longer:
        yield (
            f"{_of(longer, total)} with captions of several lines: only the first is trained; "
            "put everything into one line"
        )
    framed = [member.entry for member in inspected.members if _is_framed_in_lines(member)]
    if framed:
        yield (
            f"{_of(framed, total)} with captions of several lines: caption_prefix stands before the first of them and "
            "caption_suffix after the last one alone, as in sd-scripts; write both into every line instead"
        )
    if inspected.token_counter is not None:
        yield from _long_captions(inspected, inspected.token_counter)


def _is_framed_in_lines(member: Member) -> bool:
    """Whether one of a caption's lines is taken each time, and not all of them have its prefix and suffix."""
    options = member.subset.options
    return (
        options.enable_wildcard
        and bool(options.caption_prefix or options.caption_suffix)
        and ("\n" in member.entry.caption)
    )


def _long_captions(inspected: Inspected, token_counter: Callable[[str], int]) -> Iterator[str]:
    limit = inspected.config.captions.max_token_length
    over = [
        member.entry
        for member in inspected.members
        if any(token_counter(text) > limit for text in longest_captions(member.entry.caption, member.subset.options))
    ]
    if over:
        remedy = "shorten them" if limit >= 225 else "raise max_token_length or shorten them"
        yield f"{_of(over, len(inspected.entries))} with captions over {limit} tokens: the rest is cut off; {remedy}"


def _tags(inspected: Inspected) -> Iterator[str]:
    total = len(inspected.entries)
    escaped = [entry for entry in inspected.entries if _ESCAPED_BRACKET.search(entry.caption)]
    if escaped and not inspected.config.captions.weighted_captions:  # which reads them as prompts are read
        yield (
            f"{_of(escaped, total)} with escaped brackets \\( \\) in their captions: training reads the backslash "
            "literally; remove the backslashes from the caption files"
        )
    words = Counter(
        tag for entry in inspected.entries for tag in split_tags(entry.caption) if _UNDERSCORE_IN_WORD.search(tag)
    )
    if words:
        yield (
            f"underscores in tags ({some_of([word for word, _ in words.most_common()])}): prompts are usually written "
            "with spaces, and the two are different words; replace them in the caption files"
        )


def _pictures(inspected: Inspected) -> Iterator[str]:
    total = len(inspected.entries)
    by_content: dict[str, list[str]] = {}
    for entry in inspected.entries:
        if entry.content_hash:
            by_content.setdefault(entry.content_hash, []).append(entry.path.name)
    doubles = [" = ".join(names) for names in by_content.values() if len(names) > 1]
    if doubles:
        yield (
            f"the same picture more than once ({some_of(doubles)}): it counts so many times more than the others; "
            "delete the copies, and raise the repeats if that is what you want"
        )
    unmasked = [member.entry for member in inspected.members if not member.subset.options.alpha_mask]
    transparent = [entry for entry in unmasked if entry.transparent]
    if transparent:
        yield (
            f"{_of(transparent, total)} with transparency: trained on white; put them on a background of your own "
            "if white is not to be learned"
        )
    portrait = sum(entry.height > entry.width for entry in inspected.entries)
    landscape = sum(entry.width > entry.height for entry in inspected.entries)
    if total >= 5 and max(portrait, landscape) >= _DOMINATING_SHARE * total:
        word = "portrait" if portrait > landscape else "landscape"
        yield (
            f"{max(portrait, landscape)} of {total} pictures are {word}: other shapes will come out weaker; "
            "add pictures of other shapes"
        )


def _sizes(inspected: Inspected) -> Iterator[str]:
    pairs = list(zip(inspected.members, inspected.buckets, strict=True))
    for number in sorted({member.subset.terms.dataset for member in inspected.members}):
        yield from _sizes_of_dataset([pair for pair in pairs if pair[0].subset.terms.dataset == number])


def _sizes_of_dataset(pairs: Sequence[tuple[Member, Bucket]]) -> Iterator[str]:
    """Warnings about pictures that share one sizing, with their buckets."""
    sizing = pairs[0][0].subset.sizing
    total = len(pairs)
    width, height = training_size(sizing)
    sized = [(member.entry, bucket) for member, bucket in pairs]
    enlarged = [entry for entry, bucket in sized if bucket.resized[0] > entry.width or bucket.resized[1] > entry.height]
    small = [entry for entry, _ in sized if entry.width * entry.height < width * height]
    if sizing.enable_bucket and sizing.bucket_no_upscale:
        if small:
            yield (
                f"{_of(small, total)} smaller than the resolution {width}×{height}: trained at their own size; "
                "lower the resolution or use larger pictures"
            )
    elif enlarged:
        yield (
            f"{_of(enlarged, total)} too small for the resolution {width}×{height}: they are enlarged, and the blur is "
            "learned; lower the resolution, use larger pictures, or switch bucket_no_upscale on"
        )
    cropped = [entry for entry, bucket in sized if bucket.cropped_share > _CROPPED_SHARE]
    if cropped:
        remedy = "crop them yourself, or lower min_bucket_reso or bucket_reso_steps"
        remedy = remedy if sizing.enable_bucket else "switch enable_bucket on"
        yield f"{_of(cropped, total)} lose more than a quarter of their area to the crop: {remedy}"
    if sizing.enable_bucket and not sizing.bucket_no_upscale and bucket_limits(sizing)[0] ** 2 > width * height:
        half = max(8, min(width, height) // 16 * 8)
        step = f" and bucket_reso_steps to {max(8, half // 32 * 8)}" if sizing.bucket_reso_steps > half else ""
        yield (
            f"min_bucket_reso = {sizing.min_bucket_reso} is above the resolution {width}×{height}: every picture is "
            f"cropped to one square; set min_bucket_reso to {half}{step}"
        )


def _balance(inspected: Inspected) -> Iterator[str]:
    for number in sorted({member.subset.terms.dataset for member in inspected.members}):
        pictures = [member for member in inspected.members if member.subset.terms.dataset == number]
        batch, total = pictures[0].subset.sizing.batch_size, len(pictures)
        if batch > 1 and batch * 3 >= total:
            fitting = max(1, (total - 1) // 3)
            yield (
                f"train_batch_size = {batch} is large for {total} pictures: an epoch has few updates, and most see the "
                f"same pictures; set train_batch_size to {f'{fitting} or less' if fitting > 1 else '1'}"
            )
    trained = [subset for subset in inspected.scan.subsets if not subset.is_reg and subset.images]
    shares = sorted((subset.repeats * len(subset.images), subset.name) for subset in trained)
    if len(shares) > 1:
        (least, rare), (most, frequent) = shares[0], shares[-1]
        if most > _CONCEPT_IMBALANCE * least:
            yield (
                f"{frequent} comes up {most} times an epoch, {rare} {least} times: the one will be "
                "learned long before the other; choose the repeats so that images × repeats are about equal"
            )


def _regularisation(inspected: Inspected) -> Iterator[str]:
    for number in sorted({subset.terms.dataset for subset in inspected.scan.subsets}):
        subsets = [subset for subset in inspected.scan.subsets if subset.terms.dataset == number]
        trained = sum(subset.repeats * len(subset.images) for subset in subsets if not subset.is_reg)
        there = sum(subset.repeats * len(subset.images) for subset in subsets if subset.is_reg)
        used = sum(m.repeats > 0 for m in inspected.members if m.subset.is_reg and m.subset.terms.dataset == number)
        pictures = sum(len(subset.images) for subset in subsets if subset.is_reg)
        if there and not trained:
            yield (
                f"{', '.join(subset.name for subset in subsets)}: regularisation pictures alone, without any to train "
                "on: they are not used; put them into one dataset with those"
            )
        elif 0 < there < trained:
            yield (
                f"{there} regularisation pictures for {trained} pictures an epoch: they come up more often to even it "
                f"out; {trained} different ones would be better"
            )
        elif used < pictures:
            yield (
                f"{pictures - used} of {pictures} regularisation pictures are not used: an epoch has {trained} "
                "pictures to train on, and they come up no more often"
            )


def _prefixed(inspected: Inspected) -> Iterator[str]:
    """A trigger word that stands before the captions of the class is learned as the class."""
    prefixed = [subset for subset in inspected.scan.subsets if subset.is_reg and subset.options.caption_prefix.strip()]
    if prefixed:
        yield (
            f'caption_prefix = "{prefixed[0].options.caption_prefix}" stands before the captions of regularisation '
            f"pictures too ({some_of([subset.name for subset in prefixed])}): if it is the subject's word, write it "
            "into the subject's own captions instead"
        )


def _masks_and_faces(inspected: Inspected) -> Iterator[str]:
    """Options that look for something in a picture or in its name, and find it nowhere or not everywhere."""
    by_opacity = [member.entry for member in inspected.members if member.subset.options.alpha_mask]
    if by_opacity and not any(entry.transparent for entry in by_opacity):
        yield "alpha_mask is on, and no picture has transparency: everything is learned; switch it off, or cut them out"
    cropped = [member.entry for member in inspected.members if member.subset.options.face_crop_aug_range is not None]
    faceless = [entry for entry in cropped if face_of(entry.path.stem) is None]
    if faceless:
        yield (
            f"{_of(faceless, len(cropped))} without a face in their names, for face_crop_aug_range: cut out as without "
            "it; name them like picture_120_90_40_60.png, where the face's centre and its width and height are"
        )
