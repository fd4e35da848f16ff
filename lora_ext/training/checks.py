"""Everything that can be wrong with a run, found before any work is done."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.picture_encoder import PictureEncoder, vae_file
from lora_ext.config.sample_prompts import FILEWORDS, SamplePrompt
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.folders import DatasetScan
from lora_ext.dataset.report import DatasetReport, make_report
from lora_ext.dataset.sources import scan_dataset
from lora_ext.dataset.validation_split import split_validation
from lora_ext.networks.ckpt_file import is_network_ckpt
from lora_ext.networks.file import scan_network
from lora_ext.protocols import UserError
from lora_ext.training.optimizers import check_optimizer
from lora_ext.training.plan import TrainingPlan, make_plan, written_files
from lora_ext.training.precision import check_precision
from lora_ext.training.prediction import check_prediction
from lora_ext.training.rates import check_schedule, learning_rates
from lora_ext.training.samples import read_sample_prompts


@dataclass(frozen=True)
class PreparedRun:
    """A run that has passed its checks."""

    config: TrainConfig
    output_dir: Path
    rates: dict[str, float]
    scan: DatasetScan
    report: DatasetReport
    plan: TrainingPlan
    sample_prompts: list[SamplePrompt]
    held_out: DatasetScan | None = None

    @property
    def warnings(self) -> list[str]:
        """What a person should know before the start, of the dataset and of the plan."""
        return [*self.report.warnings, *self.plan.warnings]

    @property
    def trial_prompt(self) -> str:
        """A prompt that shows what is trained: the first of the samples', or else the first caption."""
        caption = self.scan.images[0].caption.strip()
        return self.sample_prompts[0].prompt.replace(FILEWORDS, caption) if self.sample_prompts else caption


def prepare_run(
    config: TrainConfig, output_dir: Path, token_counter: Callable[[str], int] | None = None
) -> PreparedRun:
    """Check settings, output folder and dataset, and plan the run; raises UserError where something is wrong.

    `token_counter` gives a caption's tokens; without one the report says nothing of captions that are too long.
    """
    rates = learning_rates(config)
    prompts = read_sample_prompts(config)
    check_output(config, output_dir)
    scan, held_out = split_validation(scan_dataset(config), config)
    scan.raise_on_problems()
    report = make_report(scan, config, token_counter)
    plan = make_plan(config, report, output_dir)
    check_schedule(config, plan.total_steps)
    check_replaced([output_dir / name for name in written_files(config.saving, plan.counts)])
    return PreparedRun(config, output_dir, rates, scan, report, plan, prompts, held_out)


def check_output(config: TrainConfig, output_dir: Path) -> None:
    """Raise UserError where the network has no name or its folder cannot be written to; makes the folder."""
    name = config.saving.output_name
    if not name.strip():
        raise UserError("output_name is empty: give the network a name, for its files and its <lora:name:1> tag")
    if name != name.strip():
        raise UserError(f"output_name = {name!r} begins or ends with a space: take it away")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"output folder {output_dir} cannot be written to ({reason}): choose another output_dir or free this one"
        ) from error


def check_replaced(files: Sequence[Path]) -> None:
    """Raise UserError where one of these files is there and is no network: a checkpoint, most likely.

    What cannot be read as a file of tensors holds nothing to lose.
    """
    for path in files:
        if path.is_file() and _is_something_else(path):
            raise UserError(
                f"{path} is there already and is no network (a checkpoint?): the run would replace it; "
                "choose another output_name or output_dir"
            )


def _is_something_else(path: Path) -> bool:
    """Whether a file holds tensors, and none of a network."""
    if path.suffix == ".ckpt":
        return path.stat().st_size > 0 and not is_network_ckpt(path)
    try:
        header = scan_network(path)
    except UserError:
        return False
    return bool(header.shapes) and not header.holds_network


def check_checkpoint(config: TrainConfig, checkpoint: Checkpoint) -> None:
    """Raise UserError where the loaded checkpoint cannot be trained as the settings want it."""
    check_device(config, checkpoint.device)
    check_prediction(config, checkpoint)
    PictureEncoder(checkpoint, vae_file(config.memory.vae))  # refuses a VAE that does not fit


def check_device(config: TrainConfig, device: torch.device) -> None:
    """Raise UserError where the device does not compute as wanted, or the optimizer is not to be had or fails there."""
    check_precision(config, device)
    check_optimizer(config.learning, device)
