"""What is written, where and how often."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting


@dataclass(frozen=True)
class SavingSettings:
    """What is written, where and how often."""

    output_name: str = setting("", "Name", "Name of the network's files, and of the <lora:name:1> tag.")
    output_dir: str = setting(
        "", "Output folder", "Where the files go; empty is the program's own folder for networks."
    )
    save_every_n_epochs: int | None = setting(
        1, "Save every", "Write a file after so many epochs; none writes the last one only.", minimum=1, unit="epochs"
    )
    save_every_n_steps: int | None = setting(
        None, "Save every", "Write a file after so many steps as well.", minimum=1, unit="steps"
    )
    save_last_n_epochs: int | None = setting(
        None, "Keep last", "Delete older epoch files, except so many; none keeps all.", minimum=1, unit="files"
    )
    save_last_n_steps: int | None = setting(
        None, "Keep last", "Delete files of steps that are older than so many steps; none keeps all.", minimum=1,
        unit="steps",
    )  # fmt: skip
    save_model_as: str = setting(
        "safetensors", "File type", "ckpt is for old programs.", choices=("safetensors", "ckpt")
    )
    save_precision: str = setting(
        "fp16", "File precision", "fp16 halves the file; float keeps every digit.", choices=("float", "fp16", "bf16")
    )
    save_state: bool = setting(
        False, "Save states", "With each file, and at a pause, what is needed to go on exactly from there."
    )
    save_state_on_train_end: bool = setting(False, "Save the last state", "The same for the run's end alone.")
    save_last_n_epochs_state: int | None = setting(
        None, "Keep last states", "The same as for files; none keeps as many as of these.", minimum=1, unit="states"
    )
    save_last_n_steps_state: int | None = setting(
        None, "Keep last states", "The same for states of steps.", minimum=1, unit="steps"
    )
    resume: str = setting(
        "",
        "Go on from",
        "Folder of a saved state, or latest (of this name): the run goes on from there.",
    )
    resume_anyway: bool = setting(
        False, "Go on though changed", "Go on also where settings, pictures or checkpoint differ from the state's.",
        sd_scripts="",
    )  # fmt: skip
    on_disk_full: str = setting(
        "go on", "Disk full", "Where a file or a state cannot be written: go on training, or stop.",
        choices=("go on", "stop"), sd_scripts="",
    )  # fmt: skip
    log_with: str = setting(
        "csv", "Logs", "CSV is always written; tensorboard writes its files beside it.", choices=("csv", "tensorboard")
    )
    logging_dir: str = setting("", "Log folder", "Where TensorBoard's files go; empty is the run's folder.")
    log_prefix: str = setting("", "Log prefix", "Put before the name of the log's folder.")
    training_comment: str = setting("", "Comment", "Written into the file, for those who get it.")
    metadata_title: str = setting("", "Title", "Written into the file; empty is its name.")
    metadata_author: str = setting("", "Author", "Written into the file.")
    metadata_description: str = setting("", "Description", "Written into the file.")
    metadata_license: str = setting("", "Licence", "Written into the file.")
    metadata_tags: str = setting("", "Tags", "Words by which the file is found, separated by commas.")
    no_metadata: bool = setting(
        False, "No metadata", "Leave settings and tags out of the file; X/Y/Z and the cards know less then."
    )
    save_sidecar: str = setting(
        "auto", "Card files", "Trigger words and preview beside each file, for the WebUI's cards; auto: in the WebUI.",
        choices=("auto", "yes", "no"), sd_scripts="",
    )  # fmt: skip
