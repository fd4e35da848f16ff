"""Whether a run that has ended early can go on from a state of its own."""

from __future__ import annotations

from pathlib import Path

from lora_ext.jobs.records import RunRecord
from lora_ext.training.state_folders import latest_state


def state_to_resume(record: RunRecord) -> str:
    """The folder of the last state that a run has left, empty where it goes on, has finished, or has left none."""
    if record.active or record.state == "finished":
        return ""
    found = latest_state(Path(record.output_dir), record.name, written_after=record.started or record.created)
    return str(found) if found is not None else ""
