"""Pictures of the network while it is trained, and validation."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting


@dataclass(frozen=True)
class SampleSettings:
    """Pictures of the network while it is trained, and validation."""

    sample_every_n_epochs: int | None = setting(
        None, "Draw every", "Draw the samples after so many epochs.", minimum=1, unit="epochs"
    )
    sample_every_n_steps: int | None = setting(
        None, "Draw every", "The same in steps; epochs win where both are given.", minimum=1, unit="steps"
    )
    sample_at_first: bool = setting(False, "Before the first step", "Draw the samples without the network too.")
    sample_sampler: str = setting(
        "Euler a", "Sampler", "By its name in the WebUI or in sd-scripts (Euler a or euler_a)."
    )
    sample_prompts: str = setting(
        "", "Prompts",
        "One a line, or a .txt, .toml or .json file of them; options after a prompt: --n negative --w width "
        "--h height --d seed --s steps --l CFG --ss sampler. Empty: the first caption.", lines=4,
    )  # fmt: skip
    validation_split: float = setting(
        0.0, "Validation share", "Share of the pictures that is held out to measure progress; 0 holds none out.",
        minimum=0, maximum=0.9,
    )  # fmt: skip
    validation_data_dir: str = setting(
        "", "Validation pictures", "Folder of pictures that are not trained on, to measure progress.", sd_scripts=""
    )
    validation_seed: int | None = setting(
        None, "Validation seed", "Which pictures are held out, and their noise; none is the run's seed.", minimum=0,
        maximum=2**32 - 1,
    )  # fmt: skip
    validate_every_n_epochs: int = setting(
        1, "Validate every", "Measure after so many epochs.", minimum=1, maximum=100000, unit="epochs"
    )
    validate_every_n_steps: int | None = setting(
        None, "Validate every", "Measure after so many steps as well.", minimum=1, unit="steps"
    )
    max_validation_steps: int | None = setting(
        None, "Validation batches", "At most so many batches a time.", minimum=1, unit="batches"
    )
    early_stopping_patience: int | None = setting(
        None, "Early stop", "End the run after so many measurements in a row without a better one.", minimum=1,
        sd_scripts="",
    )  # fmt: skip
