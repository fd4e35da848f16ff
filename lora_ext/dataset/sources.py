"""From the settings to everything that is trained on, whatever form the dataset comes in."""

from __future__ import annotations

from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.folders import DatasetScan, Terms, scan_folder
from lora_ext.dataset.masks import mask_problems
from lora_ext.dataset.options import run_sizing, subset_options


def scan_dataset(config: TrainConfig) -> DatasetScan:
    """Look through the dataset of the settings.

    Raises UserError where there is none, or nothing in it that can be trained on; single broken pictures and captions
    are collected in the result's `problems`.
    """
    scan = DatasetScan()
    scan_folder(
        "train_data_dir", config.dataset.train_data_dir, Terms(subset_options(config), run_sizing(config)), scan
    )
    scan.problems += mask_problems(scan)
    return scan
