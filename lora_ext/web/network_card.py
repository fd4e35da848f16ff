"""A network file as a card of HTML: its picture, what its training noted, and the fields that a person may change.

Everything in such a file may come from anybody, so all of it is escaped here, and no text of it becomes an address
but pictures that stand in the file itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from lora_ext.merge.tools import MODULES
from lora_ext.networks.card_files import VERSIONS, cover_of, read_words
from lora_ext.networks.file import NetworkHeader
from lora_ext.protocols import UserError
from lora_ext.web.markup import hint, warnings
from lora_ext.web.pictures import picture_url

COVER = 384
"""Longest side of the card's picture, in pixels."""

FILE_FIELDS = {
    "modelspec.title": "Title",
    "modelspec.author": "Author",
    "modelspec.license": "Licence",
    "modelspec.tags": "Tags",
    "ss_training_comment": "Training comment",
    "modelspec.description": "Description",
}
"""Metadata in the file that has a field of its own, with its label."""

WORD_FIELDS = {
    "preferred weight": "Preferred weight (0: none)",
    "sd version": "Made for",
    "activation text": "Activation text",
    "negative text": "Negative prompt",
    "description": "Description",
    "notes": "Notes",
}
"""Words beside the file that have a field of their own, with its label."""

_FACTS = {
    "ss_network_dim": "rank",
    "ss_network_alpha": "alpha",
    "ss_network_module": "made by",
    "ss_epoch": "epoch",
    "ss_num_epochs": "of epochs",
    "ss_steps": "steps",
    "ss_num_train_images": "pictures",
    "ss_num_reg_images": "class pictures",
    "ss_total_batch_size": "batch",
    "ss_resolution": "resolution",
    "ss_learning_rate": "learning rate",
    "ss_unet_lr": "U-Net's rate",
    "ss_text_encoder_lr": "text encoder's rate",
    "ss_lr_scheduler": "schedule",
    "ss_optimizer": "optimizer",
    "ss_clip_skip": "clip skip",
    "ss_seed": "seed",
    "ss_sd_model_name": "trained on",
    "ss_base_model_version": "base",
    "ss_vae_name": "VAE",
}
_LONG_FIELDS = ("modelspec.description", "description", "notes", "negative text", "activation text")
_EMBEDDED = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/=]+")
_MOST_TAGS = 60
_MOST_CHARACTERS = 1500
_MOST_EMBEDDED = 4 << 20


def network_card(path: Path, header: NetworkHeader | None) -> str:
    """The whole card; `header` is None where the file cannot be read."""
    metadata = header.metadata if header is not None else {}
    return (
        f'<article class="lw-network" data-path="{escape(str(path))}" data-name="{escape(path.stem)}">'
        f"{_head(path, header)}{_facts(metadata)}{_frequencies(metadata)}{_word_form(path)}"
        f"{_file_form(metadata) if header is not None else ''}{_everything(metadata)}</article>"
    )


def _head(path: Path, header: NetworkHeader | None) -> str:
    status = path.stat()
    written = datetime.fromtimestamp(status.st_mtime).strftime("%Y-%m-%d %H:%M")
    about = [f"{status.st_size / 2**20:.1f} MB", f"written {written}"]
    problem = ""
    if header is not None:
        about.append(f"{len(header.keys)} tensor{'' if len(header.keys) == 1 else 's'}")
        about += [f"hash {header.metadata[key][:12]}" for key in ("sshs_model_hash",) if key in header.metadata]
    elif path.suffix.lower() == ".safetensors":
        problem = warnings([f"{path.name} cannot be read: copy or download it again"])
    return (
        f"<header>{_cover(path, header)}<div><h4>{escape(path.stem)}</h4><p><code>{escape(str(path))}</code></p>"
        f'<p class="lw-hint">{escape(" · ".join(about))}</p>{problem}'
        '<div class="lw-controls"><button type="button" class="lw-copy" data-lw-action="use-network" '
        f'data-name="{escape(path.stem)}" data-run="{escape(path.stem)}" data-trial="">Use</button>'
        '<button type="button" class="lw-copy" data-lw-action="copy" '
        f'data-text="{escape(f"<lora:{path.stem}:1>")}">Copy tag</button>'
        f"{_tool_buttons(path)}"
        '<label class="lw-copy">Set picture<input type="file" accept="image/png,image/jpeg,image/webp" '
        "data-lw-cover hidden></label>"
        '<span class="lw-control-error lw-cover-error" role="alert"></span></div></div></header>'
    )


def _tool_buttons(path: Path) -> str:
    """What opens the tab of the file tools with this network filled in."""
    values = {name: str(path) for name in ("file", "files")}
    return "".join(
        f'<button type="button" class="lw-copy" data-lw-action="open-tool" data-tool="{tool}" '
        f'data-values="{escape(json.dumps(values))}">{label}</button>'
        for tool, label in (("resize", "Resize …"), ("check", "Check …"))
        if tool in MODULES
    )


def _cover(path: Path, header: NetworkHeader | None) -> str:
    beside = cover_of(path)
    address = picture_url(beside, COVER) if beside is not None else _embedded(header.metadata if header else {})
    if not address:
        return '<div class="lw-cover lw-hint">no picture</div>'
    return f'<div class="lw-cover"><img alt="{escape(path.stem)}" src="{escape(address)}"></div>'


def _embedded(metadata: Mapping[str, str]) -> str:
    """The picture in the file itself as an address, empty where there is none in a usual format."""
    thumbnail = metadata.get("modelspec.thumbnail", "")
    covers = _json(metadata.get("ssmd_cover_images", ""))
    first = covers[0] if isinstance(covers, list) and covers else ""
    for address in (thumbnail, f"data:image/png;base64,{first}"):
        if len(address) <= _MOST_EMBEDDED and _EMBEDDED.fullmatch(address):
            return address
    return ""


def _facts(metadata: Mapping[str, str]) -> str:
    known = {label: metadata[key] for key, label in _FACTS.items() if metadata.get(key, "None") not in ("None", "")}
    if not known:
        return hint("The file says nothing of its training.")
    items = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{_short(value, 120)}</dd></div>" for label, value in known.items()
    )
    return f'<dl class="lw-network-facts">{items}</dl>'


def _frequencies(metadata: Mapping[str, str]) -> str:
    """The folders of pictures, and the tags of captions that were seen most."""
    counts: dict[str, int] = {}
    for tags in _tables(metadata.get("ss_tag_frequency", "")):
        for tag, count in tags.items():
            if isinstance(count, int):
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    if not counts:
        return ""
    most = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    shown = "".join(f"<li>{_short(tag, 80)} <b>{count:,}</b></li>" for tag, count in most[:_MOST_TAGS])
    more = hint(f"and {len(most) - _MOST_TAGS:,} more") if len(most) > _MOST_TAGS else ""
    return f'<h5>Tags in the captions</h5><ul class="lw-frequencies">{shown}</ul>{more}'


def _word_form(path: Path) -> str:
    name = escape(path.with_suffix(".json").name)
    where = f"in {name} beside the file, as the WebUI's cards have it"
    try:
        values = read_words(path)
    except UserError as error:
        return f"<h5>On its card</h5>{warnings([str(error)])}"
    fields = "".join(
        _select(key, label, str(values.get(key, "")), VERSIONS)
        if key == "sd version"
        else _field(key, label, _shown(values.get(key)))
        for key, label in WORD_FIELDS.items()
    )
    return _form("words", "On its card", where, fields)


def _file_form(metadata: Mapping[str, str]) -> str:
    fields = "".join(
        _field(key, label, "" if metadata.get(key) in (None, "None") else metadata[key])
        for key, label in FILE_FIELDS.items()
    )
    return _form("metadata", "In the file", "written into the file; its tensors and its hash stay", fields)


def _form(kind: str, title: str, where: str, fields: str) -> str:
    return (
        f'<section class="lw-network-form" data-kind="{kind}"><h5>{title} <span class="lw-hint">{where}</span></h5>'
        f'<div class="lw-fields">{fields}</div><div class="lw-controls">'
        f'<button type="button" class="lw-button" data-lw-action="save-{kind}" disabled>Save</button>'
        '<span class="lw-control-error" role="alert"></span></div></section>'
    )


def _field(key: str, label: str, value: str) -> str:
    name, text = escape(key), escape(value)
    if key in _LONG_FIELDS:
        control = f'<textarea data-key="{name}" rows="2">{text}</textarea>'
    else:
        control = f'<input type="text" data-key="{name}" value="{text}" autocomplete="off">'
    return f'<label class="lw-field">{escape(label)}{control}</label>'


def _select(key: str, label: str, value: str, choices: Iterable[str]) -> str:
    options = "".join(
        f'<option value="{choice}"{" selected" if choice == value else ""}>{choice or "not said"}</option>'
        for choice in choices
    )
    return f'<label class="lw-field">{escape(label)}<select data-key="{escape(key)}">{options}</select></label>'


def _everything(metadata: Mapping[str, str]) -> str:
    if not metadata:
        return ""
    rows = "".join(
        f"<tr><th>{_short(key, 80)}</th><td>{_short(value, _MOST_CHARACTERS)}</td></tr>"
        for key, value in sorted(metadata.items())
    )
    return f"<details><summary>All metadata ({len(metadata)})</summary><table>{rows}</table></details>"


def _shown(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else "" if value is None else str(value)


def _short(text: str, most: int) -> str:
    return escape(text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)")


def _tables(text: str) -> list[dict[str, Any]]:
    """The tables inside of a JSON table; none where it is something else."""
    values = _json(text)
    return [each for each in values.values() if isinstance(each, dict)] if isinstance(values, dict) else []


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
