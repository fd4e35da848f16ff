"""Runs one after the other in a thread of their own; pages may come and go."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

from lora_ext.config.train_config import TrainConfig
from lora_ext.jobs.live_status import LiveStatus, RunStatus
from lora_ext.jobs.recording import check_host, output_folder, train_recorded
from lora_ext.jobs.records import RunRecord
from lora_ext.jobs.registry import OpenRun, RunRegistry
from lora_ext.jobs.tensorboard_log import check_logs
from lora_ext.jobs.tool_job import ToolRunner
from lora_ext.protocols import Control, Host, UserError
from lora_ext.training.checks import prepare_run


@dataclass
class _Job:
    """A run of this process, waiting, going on or over."""

    run: OpenRun
    config: TrainConfig
    control: Control = field(default_factory=Control)
    live: LiveStatus = field(default_factory=LiveStatus)
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def id(self) -> str:
        return self.run.record.id


class JobRunner:
    """Trains on the host's checkpoint, first come, first served. All methods may be called from any thread.

    `tools` works with files beside that.
    """

    def __init__(self, host: Host, registry: RunRegistry) -> None:
        self.host = host
        self.registry = registry
        self.tools = ToolRunner()
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._waiting: deque[_Job] = deque()
        self._current: _Job | None = None
        self._latest: _Job | None = None
        self._worker: threading.Thread | None = None

    def start(self, config: TrainConfig) -> RunRecord:
        """Check everything, then train, at once or after the runs that are there already (`state` queued).

        Raises UserError or ConfigError where something is wrong; then no run is entered.
        """
        prepared = prepare_run(config, output_folder(config, self.host))
        check_logs(config)
        check_host(prepared, self.host)
        with self._lock:
            ahead = [job for job in (self._current, *self._waiting) if job is not None]
            checkpoint, note = self.host.checkpoint_info().name, _waiting_note(ahead, config)
            run = self.registry.create_prepared(prepared, checkpoint=checkpoint, note=note)
            job = _Job(run, config)
            if run.record.note:
                job.live.message("info", run.record.note)
            self._jobs[job.id] = job
            self._waiting.append(job)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="lora-workshop-runs", daemon=True)
                self._worker.start()
        return run.record

    def status(self, run_id: str | None = None) -> RunStatus:
        """How a run goes on; without an id the one that is running or next, or the last one of this process."""
        with self._lock:
            upcoming = self._current or (self._waiting[0] if self._waiting else self._latest)
            job = self._jobs.get(run_id) if run_id else upcoming
            queued = [waiting.run.record for waiting in self._waiting]
        if job is not None:
            return job.live.snapshot(job.run.record, queued)
        if run_id is None:
            return RunStatus(queued=tuple(queued))
        record = self.registry.record(run_id)
        losses = tuple((step.step, step.loss) for step in self.registry.steps(run_id)[-500:])
        progress = record.steps / record.total_steps if record.total_steps else 0.0
        samples = len(self.registry.samples(run_id))
        return RunStatus(
            record, record.state, progress=progress, losses=losses, samples=samples,
            validations=len(self.registry.validations(run_id)), queued=tuple(queued),
        )  # fmt: skip

    def stop(self, run_id: str) -> RunRecord:
        """End the run after its present step and keep what is trained; a run that waits is taken from the queue."""
        return self._end(run_id, keep=True)

    def cancel(self, run_id: str) -> RunRecord:
        """End the run after its present step and write nothing more."""
        return self._end(run_id, keep=False)

    def save_now(self, run_id: str) -> RunRecord:
        """Write a file after the present step and go on."""
        job = self._job(run_id)
        job.control.save_now()
        return job.run.record

    def pause(self, run_id: str) -> RunRecord:
        """Give the checkpoint back after the present step, until `resume`; UserError where the run does not go on."""
        job = self._job(run_id)
        if job.run.record.state != "running":
            raise UserError(f"{job.run.record.name} is {job.run.record.state}: only a run that goes on can be paused")
        job.live.phase("pausing after this step", 0, 0)
        job.control.pause()
        return job.run.record

    def resume(self, run_id: str, load_checkpoint: bool = False) -> RunRecord:
        """Let a paused run go on; with `load_checkpoint` its checkpoint is loaded where another one is.

        The run stays paused, with the reason as its note, where it cannot have its checkpoint.
        """
        job = self._job(run_id)
        if job.run.record.state not in ("running", "paused"):
            raise UserError(f"{job.run.record.name} is {job.run.record.state}: only a paused run can be resumed")
        if job.run.record.state == "paused":
            job.live.phase("waiting for the checkpoint", 0, 0)
        job.control.resume(load_checkpoint)
        return job.run.record

    def sample_now(self, run_id: str) -> RunRecord:
        """Draw the samples after the present step and go on."""
        job = self._job(run_id)
        job.control.sample_now()
        return job.run.record

    def wait(self, run_id: str, timeout: float | None = None) -> RunRecord:
        """The run's record as soon as it is over, or after `timeout` seconds as it is then."""
        job = self._job(run_id)
        job.done.wait(timeout)
        return job.run.record

    def close(self, timeout: float | None = 60.0) -> None:
        """Before the program ends: drop the queue, stop the present run, keep its work, and wait for that.

        Work with files is cancelled.
        """
        with self._lock:
            jobs = [*self._waiting, *([self._current] if self._current else [])]
            worker = self._worker
        for job in jobs:
            self.stop(job.id)
        if worker is not None:
            worker.join(timeout)
        self.tools.close(timeout)

    def _job(self, run_id: str) -> _Job:
        with self._lock:
            job = self._jobs.get(run_id)
        if job is None:
            record = self.registry.record(run_id)
            raise UserError(f"run {run_id} is not one of this program: it is {record.state}")
        return job

    def _end(self, run_id: str, keep: bool) -> RunRecord:
        job = self._job(run_id)
        with self._lock:
            waiting = job in self._waiting
            if waiting:
                self._waiting.remove(job)
        if waiting:
            job.run.update(state="stopped", finished=time.time(), note="taken from the queue before its turn came")
            job.run.close()
            job.done.set()
        elif keep:
            job.control.stop()
        else:
            job.control.cancel()
        return job.run.record

    def _work(self) -> None:
        """Train one run after the other until none waits."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._worker = None
                    return
                job = self._current = self._latest = self._waiting.popleft()
            try:
                train_recorded(self.host, job.run, job.config, job.control, [job.live])
            except Exception as error:
                # A failure whose traceback could not be kept (the disk is full or gone): the next run must start.
                job.live.message("error", f"The registry of runs cannot be written: {type(error).__name__}: {error}")
            finally:
                with self._lock:
                    self._current = None
                job.done.set()


def _waiting_note(ahead: list[_Job], config: TrainConfig) -> str:
    """What a second start is told; empty where nothing is ahead."""
    if not ahead:
        return ""
    names = ", ".join(job.run.record.name for job in ahead)
    note = f"waits for {names} to end, then starts by itself"
    if any(job.run.record.name == config.saving.output_name for job in ahead):
        note += f"; it will replace files of the other {config.saving.output_name}"
    return note
