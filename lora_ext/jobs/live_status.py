"""How a run goes on at the moment, for a page that asks now and then."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_ext.jobs.memory import memory_in_use
from lora_ext.jobs.records import RunRecord, json_value
from lora_ext.jobs.steps_file import BANDS, RunningMean
from lora_ext.protocols import (
    EpochReport,
    Events,
    MessageLevel,
    PauseReport,
    Sample,
    SavedNetwork,
    StepReport,
    ValidationReport,
)

_MESSAGES = 200
_LOSSES = 500
_ETA_WINDOW = 30
_BANDS_SMOOTHED = 50


@dataclass(frozen=True)
class RunStatus:
    """One look at a run.

    `phase` is what is being done ("caching latents", "training", …) with `phase_done` of `phase_total`; `progress`
    runs from 0 to 1 over the steps; `losses` are the last (step, loss) pairs; `samples` counts the sample pictures;
    `validations` the measurements of held-out pictures; `memory_gb` is what the run takes, `bands` are its smoothed
    losses by timesteps.
    `queued` are the runs that wait. While the run is paused, `live_network` is the name of what is trained so far in
    prompts, and `missing_checkpoint` names what has to be loaded where the run could not go on for want of it.
    """

    record: RunRecord | None = None
    phase: str = ""
    phase_done: int = 0
    phase_total: int = 0
    progress: float = 0.0
    eta_seconds: float | None = None
    seconds_per_step: float | None = None
    learning_rates: dict[str, float] = dataclasses.field(default_factory=dict)
    losses: tuple[tuple[int, float | None], ...] = ()
    messages: tuple[dict[str, str], ...] = ()
    saved: tuple[dict[str, Any], ...] = ()
    samples: int = 0
    validations: int = 0
    memory_gb: float | None = None
    bands: dict[str, float] = dataclasses.field(default_factory=dict)
    queued: tuple[RunRecord, ...] = ()
    live_network: str = ""
    missing_checkpoint: str = ""

    @property
    def active(self) -> bool:
        """Whether the run goes on, is paused or waits for its turn."""
        return self.record is not None and self.record.active

    def as_json(self) -> dict[str, Any]:
        """The status as JSON values."""
        values = {key: json_value(value) for key, value in dataclasses.asdict(self).items()}
        return {**values, "active": self.active}


class LiveStatus(Events):
    """Collects a run's events; `snapshot` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phase = ("waiting", 0, 0)
        self._last: StepReport | None = None
        self._losses: deque[tuple[int, float]] = deque(maxlen=_LOSSES)
        self._times: deque[tuple[int, float]] = deque(maxlen=_ETA_WINDOW)
        self._messages: deque[dict[str, str]] = deque(maxlen=_MESSAGES)
        self._saved: list[dict[str, Any]] = []
        self._pause: PauseReport | None = None
        self._samples = 0
        self._validations: list[ValidationReport] = []
        self._bands = {band: RunningMean(_BANDS_SMOOTHED) for band in BANDS}
        self._band_losses: dict[str, float] = {}

    def phase(self, name: str, done: int, total: int) -> None:
        """Show another phase, or how far it has come."""
        with self._lock:
            self._phase = (name, done, total)

    def run_started(self, total_steps: int, total_epochs: int) -> None:
        """Show that training begins."""
        with self._lock:
            self._phase = ("training", 0, total_steps)

    def step(self, report: StepReport) -> None:
        """Take in a step."""
        with self._lock:
            self._last = report
            self._phase = ("training", report.step, report.total_steps)
            self._losses.append((report.step, report.loss))
            now = time.monotonic()
            if not self._times:  # steps before it were taken in an earlier run, or before a pause
                self._times.append((report.step - 1, now - report.seconds))
            self._times.append((report.step, now))
            for band, loss in report.bands.items():
                self._band_losses[band] = self._bands[band].add(loss)

    def validated(self, report: ValidationReport) -> None:
        """Take in a measurement."""
        with self._lock:
            self._validations.append(report)

    def saved(self, saved: SavedNetwork) -> None:
        """Take in a file."""
        entry = {"path": str(saved.path), "epoch": saved.epoch, "step": saved.step, "is_last": saved.is_last}
        with self._lock:
            self._saved = [other for other in self._saved if other["path"] != entry["path"]] + [entry]

    def paused(self, report: PauseReport) -> None:
        """Show that the run stands still."""
        with self._lock:
            self._pause = report
            self._phase = ("paused", 0, 0)

    def resumed(self) -> None:
        """Show that training goes on; the time of the pause counts for no step."""
        with self._lock:
            step, total = (self._last.step, self._last.total_steps) if self._last else (0, 0)
            self._pause = None
            self._phase = ("training", step, total)
            self._times.clear()

    def sampled(self, sample: Sample) -> None:
        """Count a sample."""
        with self._lock:
            self._samples += 1

    def message(self, level: MessageLevel, text: str) -> None:
        """Take in a message."""
        with self._lock:
            self._messages.append({"level": level, "text": text})

    def snapshot(self, record: RunRecord, queued: Sequence[RunRecord]) -> RunStatus:
        """The status of the run whose record this is."""
        with self._lock:
            phase, done, total = self._phase if record.active else (record.state, record.steps, record.total_steps)
            last = self._last
            steps = last.step if last else record.steps
            total_steps = last.total_steps if last else record.total_steps
            per_step = self._seconds_per_step()
            moving = record.active and self._pause is None
            eta = per_step * (total_steps - steps) if per_step is not None and moving else None
            pause = self._pause if record.active else None
            if last is not None and record.active:
                loss = self._losses[-1][1]
                record = dataclasses.replace(
                    record, steps=last.step, total_steps=last.total_steps, epochs=last.epoch,
                    total_epochs=last.total_epochs, loss=loss,
                )  # fmt: skip
            return RunStatus(
                record=record,
                phase=phase,
                phase_done=done,
                phase_total=total,
                progress=steps / total_steps if total_steps else 0.0,
                eta_seconds=eta,
                seconds_per_step=per_step,
                learning_rates=_finite(last.learning_rates) if last else {},
                losses=tuple(self._losses),
                messages=tuple(self._messages),
                saved=tuple(entry for entry in self._saved if entry["path"] in record.files),
                samples=self._samples,
                validations=len(self._validations),
                memory_gb=memory_in_use() if moving else None,
                bands=_finite({band: self._band_losses[band] for band in BANDS if band in self._band_losses}),
                queued=tuple(queued),
                live_network=pause.live_name if pause else "",
                missing_checkpoint=pause.missing_checkpoint if pause else "",
            )

    def _seconds_per_step(self) -> float | None:
        """Wall time of the last steps, with what went on between them."""
        if len(self._times) < 2:
            return None
        (first_step, first), (last_step, last) = self._times[0], self._times[-1]
        return (last - first) / (last_step - first_step)


def _finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """Those that are numbers: a page shows nothing for the others."""
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


class FanOut(Events):
    """Hands every event to several sinks, in their order."""

    def __init__(self, sinks: Sequence[Events]) -> None:
        self.sinks = tuple(sinks)

    def phase(self, name: str, done: int, total: int) -> None:
        """Hand on."""
        for sink in self.sinks:
            sink.phase(name, done, total)

    def run_started(self, total_steps: int, total_epochs: int) -> None:
        """Hand on."""
        for sink in self.sinks:
            sink.run_started(total_steps, total_epochs)

    def step(self, report: StepReport) -> None:
        """Hand on."""
        for sink in self.sinks:
            sink.step(report)

    def epoch(self, report: EpochReport) -> None:
        """Hand on."""
        for sink in self.sinks:
            sink.epoch(report)

    def validated(self, report: ValidationReport) -> None:
        """Hand on."""
        for sink in self.sinks:
            sink.validated(report)

    def saved(self, saved: SavedNetwork) -> None:
        """Hand on."""
        for sink in self.sinks:
            sink.saved(saved)

    def paused(self, report: PauseReport) -> None:
        """Hand on."""
        for sink in self.sinks:
            sink.paused(report)

    def resumed(self) -> None:
        """Hand on."""
        for sink in self.sinks:
            sink.resumed()

    def sampled(self, sample: Sample) -> None:
        """Hand on."""
        for sink in self.sinks:
            sink.sampled(sample)

    def message(self, level: MessageLevel, text: str) -> None:
        """Hand on."""
        for sink in self.sinks:
            sink.message(level, text)
