"""A run of ours in a process of its own: `python -m benchmarks.sd_scripts.ours JOB.json`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.sd_scripts.recording import Recorder
from lora_ext.config.train_config import make_config
from lora_ext.demo.memory import peak_memory_gb
from lora_ext.host.standalone.host import StandaloneHost
from lora_ext.protocols import Events, StepReport
from lora_ext.training.trainer import Trainer


class Watch(Events):
    """When the first step begins, and when each has ended: by the clock, and in seconds of the processor."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.processor_times: list[float] = []

    def run_started(self, total_steps: int, total_epochs: int) -> None:
        """Note the time."""
        self._note_time()

    def step(self, report: StepReport) -> None:
        """Note the time."""
        self._note_time()

    def _note_time(self) -> None:
        self.times.append(time.time())
        self.processor_times.append(time.process_time())


def main(job_path: str) -> None:
    """Train as the job says, write what was drawn into its folder, and its report."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    config = make_config(job["settings"])
    folder = Path(job["handed"])
    host = StandaloneHost(Path(job["checkpoint"]), folder / "home", device="cpu")
    recorder, watch = Recorder(), Watch()
    with host.borrow() as borrow, recorder.listening():
        result = Trainer(borrow.checkpoint, config, Path(config.saving.output_dir), watch).run()
        recorder.write(folder, borrow.checkpoint.latent_scale)
    report = {
        "losses": result.losses,
        "times": watch.times,
        "processor_times": watch.processor_times,
        "peak_gb": peak_memory_gb(),
        "versions": {"torch": torch.__version__},
    }
    Path(job["report"]).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
