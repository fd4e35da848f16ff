"""What a run's files say of the run."""

from __future__ import annotations

import secrets
import time

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.dataset.report import DatasetReport
from lora_ext.networks.metadata import RunFacts, checkpoint_facts, network_metadata
from lora_ext.training.checks import PreparedRun
from lora_ext.training.optimizers import optimizer_title


class MetadataOfRun:
    """Gives the metadata of each file of a run.

    Times are whole seconds and the session id has ten digits, always: `sshs_legacy_hash` looks at a fixed place in the
    file, so the header of a repeated run must have the same length.
    """

    def __init__(self, checkpoint: Checkpoint, prepared: PreparedRun) -> None:
        self._prepared = prepared
        self._checkpoint = checkpoint_facts(checkpoint)
        self._session_id = 10**9 + secrets.randbelow(2**32 - 10**9)
        self._optimizer = optimizer_title(prepared.config.learning)
        self._started_at = _whole_seconds()

    def __call__(self, stem: str, epoch: int, step: int) -> dict[str, str]:
        """Metadata of the file `stem`, written after `step` updates in `epoch`."""
        report, plan = self._prepared.report, self._prepared.plan
        facts = RunFacts(
            output_name=stem,
            session_id=self._session_id,
            training_started_at=self._started_at,
            training_finished_at=_whole_seconds(),
            checkpoint=self._checkpoint,
            num_train_images=report.repeats,
            num_batches_per_epoch=plan.batches_per_epoch,
            num_epochs=plan.total_epochs,
            max_train_steps=plan.total_steps,
            epoch=epoch,
            steps=step,
            optimizer=self._optimizer,
            dataset_dirs={
                folder.name: {"n_repeats": folder.repeats, "img_count": folder.pictures} for folder in report.folders
            },
            tag_frequency=report.tag_frequency,
            bucket_info=_bucket_info(report) if self._prepared.config.dataset.enable_bucket else None,
        )
        return network_metadata(self._prepared.config, facts)


def _bucket_info(report: DatasetReport) -> dict[str, object]:
    buckets = {
        str(number): {"resolution": list(size), "count": count}
        for number, (size, count) in enumerate(report.buckets.items())
    }
    return {"buckets": buckets, "mean_img_ar_error": report.mean_ar_error}


def _whole_seconds() -> float:
    return float(int(time.time()))
