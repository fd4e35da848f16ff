"""A dataset's report and a run's plan while a person is still choosing settings."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from lora_ext.checkpoint.text.bpe import clip_tokenizer
from lora_ext.checkpoint.text.emphasis import parse_emphasis
from lora_ext.config.given_path import given_path
from lora_ext.config.groups import DatasetSettings
from lora_ext.config.sample_prompts import prompts_file
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.folders import DatasetScan
from lora_ext.dataset.inspection import RememberedFacts
from lora_ext.dataset.options import Sizing, SubsetOptions, run_sizing, subset_options
from lora_ext.dataset.report import DatasetReport, make_report
from lora_ext.dataset.sources import read_sources, scan_dataset
from lora_ext.dataset.validation_split import split_validation
from lora_ext.jobs.recording import output_folder
from lora_ext.jobs.records import json_value
from lora_ext.protocols import Host, UserError
from lora_ext.training.checks import check_device
from lora_ext.training.plan import TrainingPlan, make_plan

NO_PICTURES = "Give the folder of your pictures and press Look."
NO_PLAN = "Steps and files stand here as soon as there are pictures."

_Seen = tuple[DatasetSettings, SubsetOptions, Sizing, str, float, int | None, int, bool]
"""What a scan depends on."""
_KEPT_SCANS = 4
_SECONDS_FRESH = 60.0


@dataclass(frozen=True)
class Look:
    """A dataset as it was seen, and what the settings make of it; `held_out` pictures are measured, not trained on."""

    scan: DatasetScan
    report: DatasetReport
    held_out: int = 0


class PlanningDesk:
    """Looks at datasets and plans runs; a folder that was seen a moment ago is not read again for each change.

    `allowed_roots` are the folders that may be read and written, None is every one that the program can.
    """

    def __init__(self, host: Host, allowed_roots: Sequence[Path] | None = None) -> None:
        self.host = host
        self.allowed_roots = allowed_roots
        self._scans: dict[_Seen, tuple[float, DatasetScan, int]] = {}
        self._inspect = RememberedFacts()
        self._lock = threading.Lock()
        self._tried: tuple[Hashable, ...] | None = None

    def look(self, config: TrainConfig, fresh: bool = True) -> Look:
        """The dataset's report; raises UserError where there is nothing to train on. `fresh` reads the folder anew."""
        self.check_paths(config)
        scan, held_out = self._scan(config, fresh)
        counter = partial(count_tokens, weighted=config.captions.weighted_captions)
        return Look(scan, make_report(scan, config, counter), held_out)

    def plan(self, config: TrainConfig, fresh: bool = False) -> tuple[Look, TrainingPlan]:
        """The report, and the steps and files of a run; raises UserError where this machine cannot run it."""
        look = self.look(config, fresh)
        self._check_device(config)
        try:
            return look, make_plan(config, look.report, output_folder(config, self.host))
        except OSError as error:  # a name that no file system takes
            raise UserError(
                f"output_dir = {config.saving.output_dir}: this folder cannot be looked into "
                f"({error.strerror or error}): choose another"
            ) from error

    def check_paths(self, config: TrainConfig) -> None:
        """Raise UserError where the settings, or what they name, lead out of the allowed folders."""
        if self.allowed_roots is None:
            return
        for name, text in paths_of(config):
            self._check_path(name, text)
        if config.dataset.dataset_config.strip():
            for source in read_sources(config)[0]:  # before any picture is looked at
                for path in source.paths:
                    self._check_path("dataset_config", str(path))
            scan, _ = self._scan(config, fresh=False)
            named = {str(entry.path.parent) for entry in scan.images}
            named |= {subset.options.conditioning_data_dir for subset in scan.subsets} - {""}
            for folder in named:
                self._check_path("dataset_config", folder)

    def _check_device(self, config: TrainConfig) -> None:
        """Raise what `check_device` does; settings that have passed are not tried again."""
        device = self.host.checkpoint_info().device
        tried = (config.learning, config.memory.mixed_precision, config.memory.full_bf16, device)
        if device and tried != self._tried:
            check_device(config, torch.device(device))
            self._tried = tried

    def _check_path(self, name: str, text: str) -> None:
        try:
            path = given_path(text).resolve()
        except (OSError, RuntimeError) as error:  # no right to follow it, or links in a circle
            raise UserError(f"{name} = {text}: this path cannot be followed ({error}): choose another") from error
        roots = self.allowed_roots or ()
        if not any(path.is_relative_to(root.resolve()) for root in roots):
            there = ", ".join(str(root) for root in roots)
            raise UserError(f"{name} = {text}: this folder is not open to the page; allowed are {there}")

    def _scan(self, config: TrainConfig, fresh: bool) -> tuple[DatasetScan, int]:
        """What is trained on, and how many pictures are held out."""
        samples = config.samples
        split = (samples.validation_data_dir, samples.validation_split, samples.validation_seed)
        others = (config.learning.seed, config.loss.masked_loss)
        key = (config.dataset, subset_options(config), run_sizing(config), *split, *others)
        with self._lock:
            seen = self._scans.get(key)
            if seen is not None and not fresh and time.monotonic() - seen[0] < _SECONDS_FRESH:
                return seen[1:]
            scan, measured = split_validation(scan_dataset(config, self._inspect), config, self._inspect)
            self._scans.pop(key, None)
            while len(self._scans) >= _KEPT_SCANS:
                del self._scans[next(iter(self._scans))]
            held_out = len(measured.images) if measured is not None else 0
            self._scans[key] = (time.monotonic(), scan, held_out)
            return scan, held_out


def paths_of(config: TrainConfig) -> list[tuple[str, str]]:
    """Every path that the settings name, with the name of its setting.

    What may also be the name of a network or a run, and holds no sign of a path, is looked up in the program's own
    folders.
    """
    dataset, network, saving = config.dataset, config.network, config.saving
    description = dataset.dataset_config.strip().strip('"')
    paths = [
        ("train_data_dir", dataset.train_data_dir),
        ("dataset_config", "" if "\n" in description or description[:1] in ("[", "{") else description),
        ("reg_data_dir", dataset.reg_data_dir),
        ("conditioning_data_dir", dataset.conditioning_data_dir),
        ("validation_data_dir", config.samples.validation_data_dir),
        ("vae", config.memory.vae),
        ("output_dir", saving.output_dir),
        ("logging_dir", saving.logging_dir),
        ("sample_prompts", str(prompts_file(config.samples.sample_prompts) or "")),
    ]
    named = [("network_weights", network.network_weights), ("resume", saving.resume)]
    named += [("base_weights", line) for line in network.base_weights.splitlines()]
    paths += [(name, text) for name, text in named if any(sign in text for sign in "/\\:")]
    return [(name, text) for name, text in paths if text.strip()]


@lru_cache(maxsize=100_000)
def count_tokens(caption: str, weighted: bool = False) -> int:
    """CLIP tokens of a caption, without the begin and end marks, nor where it is `weighted` the emphasis's brackets."""
    texts = [text for text, _ in parse_emphasis(caption, breaks=False)] if weighted else [caption]
    return sum(len(clip_tokenizer()(text, add_special_tokens=False, verbose=False).input_ids) for text in texts)


def bucket_sizes(scan: DatasetScan) -> list[tuple[int, int]]:
    """(width, height) at which each picture of a scan is trained."""
    return [member.bucket.size for member in scan.members]


def plan_as_json(look: Look, plan: TrainingPlan) -> dict[str, Any]:
    """Report and plan as JSON values."""
    values = {**asdict(plan), "files": [str(path) for path in plan.files], "summary": plan.summary()}
    return {"dataset": json_value(look.report.to_dict()), "plan": json_value(values)}
