"""What a run's files say of the run."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.picture_encoder import vae_file
from lora_ext.dataset.dataset_facts import dataset_facts
from lora_ext.dataset.report import DatasetReport
from lora_ext.networks.metadata import RunFacts, checkpoint_facts, network_metadata
from lora_ext.training.checks import PreparedRun
from lora_ext.training.first_weights import BaseNetwork
from lora_ext.training.optimizers import optimizer_title
from lora_ext.training.prediction import prediction_type_of


class MetadataOfRun:
    """Gives the metadata of each file of a run.

    Times are whole seconds and the session id has ten digits, always: `sshs_legacy_hash` looks at a fixed place in the
    file, so the header of a repeated run must have the same length. `validation` gives what the held-out pictures say
    after so many updates.
    """

    def __init__(self, checkpoint: Checkpoint, prepared: PreparedRun, base: Sequence[BaseNetwork] = ()) -> None:
        """`base` are the networks that are merged into the checkpoint."""
        self._prepared = prepared
        self._base_networks = [(each.file.path.name, each.multiplier, each.hash) for each in base]
        vae = vae_file(prepared.config.memory.vae) or checkpoint.vae_path
        kind = prediction_type_of(prepared.config, checkpoint)
        self._checkpoint = checkpoint_facts(replace(checkpoint, vae_path=vae, prediction_type=kind))
        self._session_id = 10**9 + secrets.randbelow(2**32 - 10**9)
        self._optimizer = optimizer_title(prepared.config.learning)
        self._started_at = _whole_seconds()
        self.validation: Callable[[int], Mapping[str, str]] = lambda step: {}

    def state_dict(self) -> dict[str, Any]:
        """What tells the run's files from those of other runs."""
        return {"session_id": self._session_id, "started_at": self._started_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the same run."""
        self._session_id, self._started_at = state["session_id"], state["started_at"]

    def __call__(self, stem: str, epoch: int, step: int) -> dict[str, str]:
        """Metadata of the file `stem`, written after `step` updates in `epoch`."""
        report, plan = self._prepared.report, self._prepared.plan
        facts = RunFacts(
            output_name=stem,
            session_id=self._session_id,
            training_started_at=self._started_at,
            training_finished_at=_whole_seconds(),
            checkpoint=self._checkpoint,
            num_train_images=report.repeats - report.reg_repeats,
            num_reg_images=sum(each.repeats * each.pictures for each in report.folders if each.is_reg),
            num_batches_per_epoch=plan.batches_per_epoch,
            num_epochs=plan.total_epochs,
            max_train_steps=plan.total_steps,
            epoch=epoch,
            steps=step,
            base_networks=self._base_networks,
            optimizer=self._optimizer,
            dataset_dirs=_dirs(report, is_reg=False),
            reg_dataset_dirs=_dirs(report, is_reg=True),
            tag_frequency=report.tag_frequency,
            num_validation_images=len(self._prepared.held_out.images) if self._prepared.held_out else 0,
            validation=self.validation(step),
            datasets=dataset_facts(self._prepared.scan) if self._prepared.config.dataset.dataset_config.strip() else (),
            bucket_info=_bucket_info(report) if self._prepared.config.dataset.enable_bucket else None,
        )
        return network_metadata(self._prepared.config, facts)


def _dirs(report: DatasetReport, is_reg: bool) -> dict[str, dict[str, int]]:
    return {
        folder.name: {"n_repeats": folder.repeats, "img_count": folder.pictures}
        for folder in report.folders
        if folder.is_reg is is_reg
    }


def _bucket_info(report: DatasetReport) -> dict[str, object]:
    buckets = {
        str(number): {"resolution": list(size), "count": count}
        for number, (size, count) in enumerate(report.buckets.items())
    }
    return {"buckets": buckets, "mean_img_ar_error": report.mean_ar_error}


def _whole_seconds() -> float:
    return float(int(time.time()))
