"""While a training has the checkpoint: its progress in the WebUI's, and the WebUI's interrupt for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from modules import shared

if TYPE_CHECKING:
    from lora_ext.jobs.runner import JobRunner

_SECONDS = 0.25


@contextmanager
def interrupts_watched(runner: JobRunner | None) -> Iterator[None]:
    """Look at the WebUI's state now and then, in a thread of its own.

    Nothing else renders meanwhile, so an interrupt is meant for the training: it stops, and keeps its work. Other
    calls reset the state's numbers, so they are set again each time.
    """
    if runner is None:
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(runner, ended), name="lora-workshop-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(runner: JobRunner, ended: threading.Event) -> None:
    while not ended.wait(_SECONDS):
        status = runner.status()
        record = status.record
        if record is None or record.state != "running":
            continue
        if shared.state.interrupted or shared.state.stopping_generation:
            runner.stop(record.id)  # first: whoever sees no interrupt any more sees that the run is to end
            shared.state.interrupted = shared.state.stopping_generation = False
        shared.state.job_count = 1
        shared.state.sampling_step = record.steps
        shared.state.sampling_steps = max(1, record.total_steps)
