"""Captions as they are handed to the text encoder, in sd-scripts' order (its process_caption)."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence

from lora_ext.dataset.options import SubsetOptions

_WILDCARD = re.compile(r"\{([^}]+)\}")


def split_tags(caption: str, separator: str = ",") -> list[str]:
    """The tags of a caption, stripped; empty ones are left out."""
    return [tag for tag in (part.strip() for part in caption.split(separator)) if tag]


def process_caption(
    caption: str, options: SubsetOptions, rng: random.Random, epoch: int = 1, step: int = 0, total_steps: int = 0
) -> str:
    """The caption as it is trained this time; `epoch` counts from 1, `step` is the number of updates made so far.

    Empty where it is dropped as a whole, otherwise one of its versions.
    """
    if is_dropped(options, rng, epoch):
        return ""
    return caption_version(caption, options, rng, step, total_steps)


def is_dropped(options: SubsetOptions, rng: random.Random, epoch: int) -> bool:
    """Whether the whole caption is left out this time."""
    every = options.caption_dropout_every_n_epochs
    by_chance = options.caption_dropout_rate > 0 and rng.random() < options.caption_dropout_rate
    return by_chance or (every > 0 and epoch % every == 0)


def caption_version(
    caption: str, options: SubsetOptions, rng: random.Random, step: int = 0, total_steps: int = 0
) -> str:
    """The caption with wildcards chosen, tags shuffled, warmed up and dropped, separators in their final form."""
    caption = _framed(caption, options)
    lines = caption.split("\n")
    if options.enable_wildcard:
        caption = choose_wildcards(rng.choice(lines) if len(lines) > 1 else caption, rng.choice)
    else:
        caption = lines[0]
    if options.shuffle_caption or options.token_warmup_step > 0 or options.caption_tag_dropout_rate > 0:
        fixed, flexible, last = split_fixed(caption, options)
        flexible = flexible[: warmed_up(len(flexible), options, step, total_steps)]
        if options.shuffle_caption:
            rng.shuffle(flexible)
        if options.caption_tag_dropout_rate > 0:
            flexible = [tag for tag in flexible if rng.random() >= options.caption_tag_dropout_rate]
        caption = ", ".join(fixed + flexible + last)
    else:
        caption = _without_keep_separator(caption, options)
    return _with_final_separators(caption, options)


def longest_captions(caption: str, options: SubsetOptions) -> list[str]:
    """The caption with all its tags in their own order; with wildcards one for each line, the longest choice in it."""
    framed = _framed(caption, options).split("\n")
    if options.enable_wildcard:
        lines = [choose_wildcards(line, lambda choices: max(choices, key=len)) for line in framed]
    else:
        lines = framed[:1]
    return [_with_final_separators(_without_keep_separator(line, options), options) for line in lines]


def choose_wildcards(caption: str, choose: Callable[[Sequence[str]], str]) -> str:
    """`{a|b}` replaced by what `choose` takes; `{{` and `}}` stand for braces.

    As in sd-scripts doubled braces are put aside first, and an alternative holds no closing brace.
    """
    opening, closing = "\ue000", "\ue001"
    while opening in caption or closing in caption:
        opening, closing = opening + "\ue000", closing + "\ue001"
    aside = caption.replace("{{", opening).replace("}}", closing)
    chosen = _WILDCARD.sub(lambda match: choose(match[1].split("|")), aside)
    return chosen.replace(opening, "{").replace(closing, "}")


def split_fixed(caption: str, options: SubsetOptions) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay in front, tags that may change, tags that stay last; empty tags are left out.

    Split at `keep_tokens_separator` where the caption holds it, otherwise after `keep_tokens` tags. (sd-scripts keeps
    the empty tags of a caption without that separator.)
    """
    separator, between = options.keep_tokens_separator, options.caption_separator
    if separator and separator in caption:
        parts = [split_tags(part, between) for part in caption.split(separator, 2)]
        return parts[0], parts[1], parts[2] if len(parts) > 2 else []
    tags = split_tags(caption, between)
    return tags[: options.keep_tokens], tags[options.keep_tokens :], []


def warmed_up(count: int, options: SubsetOptions, step: int, total_steps: int) -> int:
    """How many of `count` flexible tags are used at a step: from `token_warmup_min` up to all of them."""
    steps = options.token_warmup_step
    if steps < 1:
        steps = math.floor(steps * total_steps)
    if step >= steps:
        return count
    at_first = options.token_warmup_min
    return min(count, math.floor(step * (count - at_first) / steps) + at_first)


def _framed(caption: str, options: SubsetOptions) -> str:
    """The caption with the subset's prefix and suffix, joined by spaces."""
    before = f"{options.caption_prefix} " if options.caption_prefix else ""
    after = f" {options.caption_suffix}" if options.caption_suffix else ""
    return f"{before}{caption}{after}"


def _without_keep_separator(caption: str, options: SubsetOptions) -> str:
    """The caption without `keep_tokens_separator`, which sd-scripts leaves in where no tags are changed."""
    if options.keep_tokens_separator and options.keep_tokens_separator in caption:
        return ", ".join(tag for part in split_fixed(caption, options) for tag in part)
    return caption.strip()


def _with_final_separators(caption: str, options: SubsetOptions) -> str:
    if options.secondary_separator:
        return caption.replace(options.secondary_separator, options.caption_separator)
    return caption
