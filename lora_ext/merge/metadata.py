"""Showing and changing the metadata of a network file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from lora_ext.config.tools.metadata import MetadataSettings
from lora_ext.merge.tools import Tool
from lora_ext.merge.work import OutputFile, ToolReport, Work
from lora_ext.networks.file import scan_network
from lora_ext.networks.metadata_edit import edit_metadata
from lora_ext.protocols import ConfigError

_LONGEST = 200  # characters of a value that are shown


def run(settings: MetadataSettings, work: Work) -> ToolReport:
    """Show all metadata, after the changes that are asked for; nothing is written where there are none."""
    path = work.network(settings.file)
    work.step(0, 1)
    before = scan_network(path).metadata
    changes = metadata_changes(settings.set, settings.remove, before)
    after = edit_metadata(path, changes) if changes else before
    work.step(1, 1)
    written = [OutputFile(path, path.stat().st_size)] if after != before else []
    warnings = [] if after or written else ["the file has no metadata: it was written by another program, or without"]
    facts = {key: _shown(value) for key, value in sorted(after.items())}
    title = f"{path.name}: {len(after)} values" + (f", {_count_words(before, after)}" if changes else "")
    return ToolReport(title, facts, (), warnings, written, "", {"metadata": after})


def metadata_changes(to_set: str, to_remove: str, present: Mapping[str, str]) -> dict[str, str | None]:
    """The changes that lines of key=value, and lines of keys to remove, ask for; None takes a key away.

    Raises ConfigError with everything that is wrong with them.
    """
    problems = []
    changes: dict[str, str | None] = {}
    for line in _lines(to_set):
        key, equals, value = line.partition("=")
        if not equals or not key.strip():
            problems.append(f"set {line!r}: write the key and the value with = between them (ss_output_name=my-style)")
        elif key.strip() in changes:
            problems.append(f"set {key.strip()}: it is given twice; leave one of them out")
        else:
            changes[key.strip()] = value.strip()
    for key in _lines(to_remove):
        if key in changes:
            problems.append(f"remove {key}: it is to be set too; leave one of them out")
        elif key not in present:
            near = get_close_matches(key, present, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            problems.append(f"remove {key}: the file has no such key{hint}")
        else:
            changes[key] = None
    if problems:
        raise ConfigError(problems)
    return changes


def _lines(text: str) -> Iterable[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _count_words(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """How many values are new, other and gone."""
    counts = {
        "new": len(after.keys() - before.keys()),
        "changed": sum(after[key] != before[key] for key in after.keys() & before.keys()),
        "removed": len(before.keys() - after.keys()),
    }
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "nothing changed"


def _shown(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}… ({len(value):,} characters)"


TOOL = Tool(
    "metadata",
    "Metadata",
    "Show what a network says of itself, or change it.",
    MetadataSettings,
    run,
    changes_input=True,
)
