"""The files beside a network that the WebUI's cards show: `name.json` with words, `name.png` with a picture.

A person may edit both or put others there: what is not exactly as we wrote it is never replaced or deleted. The
JSON file says what we wrote, by hashes, under a key of our own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ext.networks.atomic_write import replace_file

_MARK = "lora workshop"
_REPEATS = re.compile(r"^\d+_")
_MOST_TAGS = 3
_SHARE = 0.9


def write_sidecar(network: Path, metadata: Mapping[str, str], picture: bytes | None = None) -> bool:
    """Write what a card shows of a network with this metadata, and a PNG file's bytes where there are some.

    Returns whether both are ours now; a person's own files stay. Raises UserError where a file cannot be written.
    """
    values_path, picture_path = network.with_suffix(".json"), network.with_suffix(".png")
    mark = _our_mark(values_path)
    if mark is None and values_path.exists():
        return False
    digest = mark.get("picture") if mark else None
    has_other_picture = picture_path.exists() and _digest(picture_path.read_bytes()) != digest
    if picture is not None and not has_other_picture:
        replace_file(picture_path, [picture])
        digest = _digest(picture)
    values = card_values(metadata)
    marked = {**values, _MARK: {"words": _digest(_canonical(values)), "picture": digest}}
    replace_file(values_path, [json.dumps(marked, indent=4, ensure_ascii=False).encode("utf-8")])
    return not (picture is not None and has_other_picture)


def delete_sidecar(network: Path) -> None:
    """Delete the files beside a network that was deleted, as far as they are ours; OSError where that fails."""
    values_path, picture_path = network.with_suffix(".json"), network.with_suffix(".png")
    mark = _our_mark(values_path)
    if mark is None:
        return
    if picture_path.exists() and _digest(picture_path.read_bytes()) == mark.get("picture"):
        picture_path.unlink()
    values_path.unlink()


def card_values(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The values of a card in the WebUI's names, from the metadata of a network file."""
    base = metadata.get("ss_sd_model_name", "None")
    trained = "" if base == "None" else f" on {base}"
    return {
        "description": f"{metadata.get('ss_output_name', '')}: epoch {metadata.get('ss_epoch', '?')}, "
        f"step {metadata.get('ss_steps', '?')}{trained}",
        "sd version": _version(metadata.get("ss_base_model_version", "")),
        "activation text": activation_text(metadata),
        "preferred weight": 1.0,
        "negative text": "",
        "notes": f"rank {metadata.get('ss_network_dim', '?')}, alpha {metadata.get('ss_network_alpha', '?')}, "
        f"learning rate {metadata.get('ss_learning_rate', '?')}, resolution {metadata.get('ss_resolution', '?')}; "
        "written by LoRA Workshop",
    }


def activation_text(metadata: Mapping[str, str]) -> str:
    """The words that call the network: names of N_name folders, else the tags that nearly all captions share."""
    folders, tags = _table(metadata.get("ss_dataset_dirs")), _table(metadata.get("ss_tag_frequency"))
    named = [_REPEATS.sub("", name).strip() for name in folders if _REPEATS.match(name)]
    if named:
        return ", ".join(dict.fromkeys(named))
    pictures = sum(int(folder.get("img_count", 0)) for folder in folders.values())
    counts: dict[str, int] = {}
    for frequencies in tags.values():
        for tag, count in frequencies.items():
            counts[tag.strip()] = counts.get(tag.strip(), 0) + int(count)
    common = [tag for tag, count in counts.items() if tag and count >= _SHARE * max(1, pictures)]
    return ", ".join(sorted(common, key=lambda tag: -counts[tag])[:_MOST_TAGS])


def _version(base_model: str) -> str:
    starts = {"sd_v1": "SD1", "sd_v2": "SD2", "sdxl": "SDXL"}
    return next((name for start, name in starts.items() if base_model.startswith(start)), "Unknown")


def _table(text: str | None) -> dict[str, Any]:
    values = json.loads(text) if text else {}
    return values if isinstance(values, dict) else {}


def _our_mark(path: Path) -> dict[str, Any] | None:
    """What we noted in a file of ours; None where there is none, or somebody has changed it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    mark = values.pop(_MARK, None) if isinstance(values, dict) else None
    if not isinstance(mark, dict) or mark.get("words") != _digest(_canonical(values)):
        return None
    return mark


def _canonical(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, ensure_ascii=True).encode("ascii")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
