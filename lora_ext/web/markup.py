"""Pieces of the page as HTML text; everything that comes from outside is escaped here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from lora_ext.config.train_config import TrainConfig
from lora_ext.protocols import CheckpointInfo
from lora_ext.training.plan import TrainingPlan
from lora_ext.training.rates import learning_rate_curve
from lora_ext.web.chart import rate_chart
from lora_ext.web.checkpoint_line import checkpoint_line
from lora_ext.web.pictures import THUMBNAIL, picture_url
from lora_ext.web.planning import Look, bucket_sizes, count_tokens

_MOST_THUMBNAILS = 400
_RATES_DRAWN = 400


def status_bar(info: CheckpointInfo) -> str:
    """What is loaded, in one line; the page's script keeps it up to date."""
    return (
        '<div class="lw-status-bar"><span class="lw-light"></span>'
        f'<span id="lw-checkpoint">{escape(checkpoint_line(info))}</span></div>'
    )


def errors(problems: Sequence[str]) -> str:
    """Problems in red words."""
    items = "".join(f"<li>{_sentence(problem)}</li>" for problem in problems)
    return f'<ul class="lw-errors" role="alert">{items}</ul>'


def warnings(texts: Sequence[str]) -> str:
    """Warnings, each with its sign; nothing where there are none."""
    items = "".join(f"<li>{_sentence(text)}</li>" for text in texts)
    return f'<ul class="lw-warnings">{items}</ul>' if items else ""


def hint(text: str) -> str:
    """What a place will show later."""
    return f'<p class="lw-hint">{escape(text)}</p>'


def dataset_report(look: Look) -> str:
    """Counts, problems, warnings and thumbnails of a dataset."""
    report, entries = look.report, look.scan.images
    facts = [
        _count(report.pictures, "picture"),
        _count(report.captions, "caption") + (f" ({report.missing} without)" if report.missing else ""),
        _count(len(report.buckets), "size"),
        f"longest caption {max((count_tokens(entry.caption) for entry in entries), default=0)} tokens",
    ]
    folders = "".join(
        f"<li><b>{escape(each.name)}</b> {_count(each.pictures, 'picture')} × {_count(each.repeats, 'repeat')}</li>"
        for each in report.folders
    )
    return (
        f'<div class="lw-report"><p class="lw-facts">{" · ".join(facts)}</p><ul class="lw-folders">{folders}</ul>'
        f"{errors(report.problems) if report.problems else ''}{warnings(report.warnings)}"
        f"{_thumbnails(look)}</div>"
    )


def _thumbnails(look: Look) -> str:
    sized = zip(look.scan.images, bucket_sizes(look.scan), strict=True)
    there = [(entry, size) for entry, size in sized if entry.order is None]
    cells = []
    for entry, (width, height) in there[:_MOST_THUMBNAILS]:
        caption = escape(entry.caption)
        source = "" if entry.caption_file else ' <i class="lw-mark">no caption file</i>'
        name, address = escape(entry.path.name), escape(picture_url(entry.path, THUMBNAIL))
        cells.append(
            f'<figure><img loading="lazy" alt="{name}" src="{address}" '
            f'title="{name}: {entry.width}×{entry.height}"><figcaption><b>{width}×{height}</b> '
            f"{caption}{source}</figcaption></figure>"
        )
    rest = len(there) - len(cells)
    more = hint(f"and {rest} more") if rest > 0 else ""
    return f'<div class="lw-thumbnails" tabindex="0">{"".join(cells)}</div>{more}'


def plan_card(config: TrainConfig, look: Look, plan: TrainingPlan) -> str:
    """Steps, files, learning rates and warnings of a run; raises UserError where its rates cannot be had."""
    batch = config.learning.train_batch_size
    accumulation = config.learning.gradient_accumulation_steps
    grouped = f"batch {batch}" + (f" × {accumulation} accumulated" if accumulation > 1 else "")
    sizes = "".join(f"<li>{width}×{height}: {count}</li>" for (width, height), count in look.report.buckets.items())
    return (
        '<div class="lw-plan-card"><p class="lw-sum">'
        f"<span>{plan.repeats_total} pictures an epoch ÷ {grouped} = {_count(plan.updates_per_epoch, 'step')}</span> "
        f"<span>{_length(plan)}</span></p>"
        f"<p>{_files_line(plan.files)}{_states(config)}</p>"
        f"{_other_pictures(look)}{_rates(config, plan)}"
        f'<details><summary>Sizes in an epoch</summary><ul class="lw-sizes">{sizes}</ul></details>'
        f"{errors(look.report.problems) if look.report.problems else ''}{warnings(plan.warnings)}</div>"
    )


def _length(plan: TrainingPlan) -> str:
    """ "× 10 epochs = 1,200 steps", or where the run ends in the middle of an epoch, "an epoch, 1,000 steps in all"."""
    total = f"<strong>{plan.total_steps:,} steps</strong>"
    if plan.total_steps == plan.total_epochs * plan.updates_per_epoch:
        return f"× {_count(plan.total_epochs, 'epoch')} = {total}"
    return f"an epoch; {total} in all, in {_count(plan.total_epochs, 'epoch')}"


def _files_line(files: Sequence[Path]) -> str:
    """ "writes FOLDER: name-000001 … name-000009, name (10 files)"."""
    names = [path.stem for path in files]
    shown = names if len(names) <= 4 else [names[0], "…", names[-2], names[-1]]
    folder = " and ".join(Counter(str(path.parent) for path in files))
    written = f"<code>{escape(', '.join(shown))}</code> ({_count(len(files), 'file')})"
    return f"writes {written} to <code>{escape(folder)}</code>"


def _other_pictures(look: Look) -> str:
    """Class pictures that are drawn first, and pictures that are held out."""
    facts = []
    if look.report.to_draw:
        facts.append(f"{_count(look.report.to_draw, 'class picture')} drawn by the checkpoint before the first step")
    if look.held_out:
        facts.append(f"{_count(look.held_out, 'picture')} held out to measure progress")
    return f"<p>{' · '.join(facts)}</p>" if facts else ""


def _rates(config: TrainConfig, plan: TrainingPlan) -> str:
    """The learning rates of all steps, exactly as they will be set."""
    every = max(1, plan.total_steps // _RATES_DRAWN)
    chart = rate_chart(learning_rate_curve(config, plan.total_steps, every), every)
    return f'<figure class="lw-rates">{chart}<figcaption>learning rate by steps</figcaption></figure>' if chart else ""


def _states(config: TrainConfig) -> str:
    """What is kept to go on from later."""
    if config.saving.save_state:
        return ", and beside each the state to go on from exactly there"
    return ", and the last state to go on from" if config.saving.save_state_on_train_end else ""


def _sentence(text: str) -> str:
    """Escaped, its line breaks kept."""
    return escape(text).replace("\n", "<br>")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
