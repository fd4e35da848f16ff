"""`TrainConfig`: all settings of a training run, in the groups in which people think.

Field names are sd-scripts' option names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from lora_ext.config.fields import Setting, declared_settings, parse_value, setting, unknown_setting
from lora_ext.config.sample_prompts import parse_sample_prompts, prompts_file
from lora_ext.protocols import ConfigError


@dataclass(frozen=True)
class DatasetSettings:
    """Where the pictures are, and in which sizes they are trained."""

    train_data_dir: str = setting(
        "", "Pictures", "Folder of pictures, or of N_name folders: N repeats, name for pictures without a caption."
    )
    num_repeats: int = setting(
        1, "Repeats", "How often each picture of a flat folder comes up in an epoch.", minimum=1, maximum=10000
    )
    caption_extension: str = setting(
        "auto", "Caption files", "Extension of the caption files; auto reads .txt and .caption.",
        choices=("auto", ".txt", ".caption"),
    )  # fmt: skip
    resolution: str = setting(
        "512", "Resolution", "Training size: one number for a square, or width,height.", unit="px"
    )
    enable_bucket: bool = setting(
        True, "Buckets", "Keep the pictures' shapes: sort them into sizes of about the same area."
    )
    min_bucket_reso: int = setting(
        256, "Smallest side", "No bucket has a side shorter than this.", minimum=8, maximum=8192, multiple_of=8,
        unit="px",
    )  # fmt: skip
    max_bucket_reso: int = setting(
        1024, "Longest side", "No bucket has a side longer than this.", minimum=8, maximum=8192, multiple_of=8,
        unit="px",
    )  # fmt: skip
    bucket_reso_steps: int = setting(
        64, "Bucket step", "Sides of buckets are multiples of this.", minimum=8, maximum=512, multiple_of=8, unit="px"
    )
    bucket_no_upscale: bool = setting(
        False, "Never enlarge", "Pictures smaller than the resolution keep their size instead of being enlarged."
    )


@dataclass(frozen=True)
class CaptionSettings:
    """How captions reach the text encoder."""

    shuffle_caption: bool = setting(
        False, "Shuffle tags", "Bring the comma-separated tags into a new order each time a picture comes up."
    )
    keep_tokens: int = setting(
        0, "Keep first tags", "So many tags at the front stay where they are; 1 keeps a trigger word in front.",
        minimum=0, maximum=255,
    )  # fmt: skip
    max_token_length: int = setting(
        225, "Longest caption", "Words beyond so many tokens are cut off.", choices=(75, 150, 225), unit="tokens"
    )
    clip_skip: int = setting(
        1, "Clip skip", "1 takes the text encoder's last layer; 2, the one before it, suits anime bases.",
        minimum=1, maximum=12,
    )  # fmt: skip


@dataclass(frozen=True)
class NetworkSettings:
    """What is trained."""

    network_dim: int = setting(
        32, "Rank", "How much the network can hold: 32 for about 30 pictures, 64 for 50 or more.",
        minimum=1, maximum=1024,
    )  # fmt: skip
    network_alpha: float = setting(
        16.0, "Alpha", "The network acts with strength alpha / rank; half the rank is usual.", minimum=0, maximum=8192
    )
    network_train_unet_only: bool = setting(False, "U-Net only", "Leave the text encoder as it is: saves memory.")
    network_train_text_encoder_only: bool = setting(
        False, "Text encoder only", "Leave the U-Net as it is: the words change, the drawing does not."
    )


@dataclass(frozen=True)
class LearningSettings:
    """How fast, how long, and in which order."""

    learning_rate: float = setting(1e-4, "Learning rate", "For every part without a rate of its own.", minimum=0)
    unet_lr: float | None = setting(None, "U-Net rate", "Learning rate of the U-Net's part.", minimum=0)
    text_encoder_lr: float | None = setting(
        None, "Text-encoder rate", "Learning rate of the text encoder's part; half of the U-Net's is usual.", minimum=0
    )
    optimizer_type: str = setting("AdamW", "Optimizer", "The rule for each update.", choices=("AdamW",))
    weight_decay: float = setting(0.01, "Weight decay", "Pulls the trained weights towards zero.", minimum=0, maximum=1)
    lr_scheduler: str = setting(
        "cosine", "Schedule", "How the rate runs over the steps.", choices=("constant", "cosine", "linear")
    )
    lr_warmup_steps: float = setting(
        0.0, "Warmup", "Steps in which the rate rises from 0; below 1 it is a share of all steps.", minimum=0,
        unit="steps",
    )  # fmt: skip
    train_batch_size: int = setting(1, "Batch", "Pictures a step; as many as memory allows.", minimum=1, maximum=512)
    gradient_accumulation_steps: int = setting(
        1, "Accumulation", "Batches that are summed up for one update.", minimum=1, maximum=1024, unit="batches"
    )
    max_train_epochs: int | None = setting(
        10, "Epochs", "Passes over all pictures; none counts steps instead.", minimum=1, maximum=100000
    )
    max_train_steps: int = setting(
        1600, "Steps", "Updates, where no number of epochs is given.", minimum=1, maximum=10_000_000, unit="steps"
    )
    max_grad_norm: float = setting(
        1.0, "Clip gradients", "Longest allowed gradient; 0 switches clipping off.", minimum=0
    )
    seed: int = setting(42, "Seed", "The same seed gives the same network.", minimum=0, maximum=2**32 - 1)


@dataclass(frozen=True)
class LossSettings:
    """Noise and loss."""

    min_snr_gamma: float | None = setting(
        5.0, "Min-SNR gamma", "Evens out the weight of noisy and clean steps; 5 is usual, none switches it off.",
        minimum=0.01, maximum=1000,
    )  # fmt: skip
    noise_offset: float = setting(
        0.0, "Noise offset", "Lets very dark and very bright pictures be learned; contested, 0.05 if at all.",
        minimum=0, maximum=1,
    )  # fmt: skip


@dataclass(frozen=True)
class MemorySettings:
    """Memory and speed."""

    mixed_precision: str = setting(
        "no", "Precision", "no computes in fp32; bf16 needs half the memory on cards from RTX 3000 on.",
        choices=("no", "bf16"),
    )  # fmt: skip
    gradient_checkpointing: bool = setting(
        False, "Gradient checkpointing", "Needs about a quarter of the memory and takes about a quarter longer."
    )
    vae_batch_size: int = setting(
        1, "VAE batch", "Pictures that are encoded at once before the first step.", minimum=1, maximum=64
    )


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
    save_last_n_epochs: int | None = setting(
        None, "Keep last", "Delete older epoch files, except so many; none keeps all.", minimum=1, unit="files"
    )
    save_precision: str = setting(
        "fp16", "File precision", "fp16 halves the file; float keeps every digit.", choices=("float", "fp16", "bf16")
    )
    training_comment: str = setting("", "Comment", "Written into the file, for those who get it.")
    save_sidecar: str = setting(
        "auto", "Card files", "Trigger words and preview beside each file, for the WebUI's cards; auto: in the WebUI.",
        choices=("auto", "yes", "no"),
    )  # fmt: skip


@dataclass(frozen=True)
class SampleSettings:
    """Pictures of the network while it is trained."""

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
        "One a line, or a .txt file of them; options after a prompt: --n negative --w width --h height --d seed "
        "--s steps --l CFG --ss sampler. Empty: the first caption.", lines=4,
    )  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run."""

    dataset: DatasetSettings = field(default_factory=DatasetSettings)
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    learning: LearningSettings = field(default_factory=LearningSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    saving: SavingSettings = field(default_factory=SavingSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)


GROUP_TITLES = {
    "dataset": "Dataset",
    "captions": "Captions",
    "network": "Network",
    "learning": "Learning",
    "loss": "Noise and loss",
    "memory": "Memory and speed",
    "saving": "Saving",
    "samples": "Samples",
}


@lru_cache(maxsize=1)
def all_settings() -> dict[str, Setting]:
    """Every setting by its name, in the order of the groups."""
    return {
        declared.name: declared
        for group in dataclasses.fields(TrainConfig)
        for declared in declared_settings(type(getattr(TrainConfig(), group.name)), group.name)
    }


def make_config(values: Mapping[str, Any], base: TrainConfig | None = None) -> TrainConfig:
    """A configuration from flat `name: value` pairs over `base` (or the defaults).

    Raises ConfigError with every unknown name, wrong type, value out of range, and contradiction at once.
    """
    known = all_settings()
    problems = [unknown_setting(name, known) for name in values if name not in known]
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name in known:
            parsed, problem = parse_value(known[name], value)
            if problem:
                problems.append(problem)
            else:
                changes.setdefault(known[name].group, {})[name] = parsed
    config = base or TrainConfig()
    groups = {group: dataclasses.replace(getattr(config, group), **change) for group, change in changes.items()}
    config = dataclasses.replace(config, **groups)
    refused = {problem.split(" = ")[0] for problem in problems}
    problems += [text for names, text in contradictions(config) if not refused.intersection(names)]
    if problems:
        raise ConfigError(problems)
    return config


def flat_values(config: TrainConfig) -> dict[str, Any]:
    """The configuration as `name: value` pairs."""
    return {name: getattr(getattr(config, declared.group), name) for name, declared in all_settings().items()}


def resolution_of(text: str) -> tuple[int, int] | None:
    """(width, height) in pixels from "512" or "512,768"; None where the text is neither."""
    parts = [part.strip() for part in text.replace("x", ",").split(",")]
    if len(parts) not in (1, 2) or not all(part.isdecimal() for part in parts):
        return None
    width, height = int(parts[0]), int(parts[-1])
    return (width, height) if width >= 8 and height >= 8 and width % 8 == 0 and height % 8 == 0 else None


def contradictions(config: TrainConfig) -> Iterable[tuple[tuple[str, ...], str]]:
    """Values that fight each other: (names involved, what is wrong and what to set)."""
    dataset, network, saving = config.dataset, config.network, config.saving
    if resolution_of(dataset.resolution) is None:
        yield (
            ("resolution",),
            (
                f"resolution = {dataset.resolution!r}: allowed is one number or width,height, "
                "each a multiple of 8 from 8 on"
            ),
        )
    yield from _bucket_contradictions(dataset)
    if prompts_file(config.samples.sample_prompts) is None:
        for problem in parse_sample_prompts(config.samples.sample_prompts)[1]:
            yield ("sample_prompts",), problem
    if dataset.min_bucket_reso > dataset.max_bucket_reso:
        yield (
            ("min_bucket_reso", "max_bucket_reso"),
            (
                f"min_bucket_reso = {dataset.min_bucket_reso} is above max_bucket_reso = {dataset.max_bucket_reso}: "
                "raise the latter or lower the former"
            ),
        )
    if network.network_train_unet_only and network.network_train_text_encoder_only:
        yield (
            ("network_train_unet_only", "network_train_text_encoder_only"),
            (
                "network_train_unet_only and network_train_text_encoder_only are both on, which leaves nothing to "
                "train: switch one of them off"
            ),
        )
    if any(sign in saving.output_name for sign in '<>:"/\\|?*\n,') or saving.output_name.strip() in (".", ".."):
        yield (
            ("output_name",),
            f'output_name = {saving.output_name!r}: names of files and tags cannot hold any of < > : " / \\ | ? * ,',
        )


def _bucket_contradictions(dataset: DatasetSettings) -> Iterable[tuple[tuple[str, ...], str]]:
    """Buckets that the resolution does not fit into."""
    size = resolution_of(dataset.resolution)
    if size is None or not dataset.enable_bucket or dataset.bucket_no_upscale:
        return
    if dataset.max_bucket_reso < max(size):
        yield (
            ("max_bucket_reso", "resolution"),
            (
                f"max_bucket_reso = {dataset.max_bucket_reso} is below the resolution {dataset.resolution}: "
                f"raise it to {max(size)} at least, or lower the resolution"
            ),
        )
    if dataset.bucket_reso_steps**2 > size[0] * size[1]:
        yield (
            ("bucket_reso_steps", "resolution"),
            (
                f"bucket_reso_steps = {dataset.bucket_reso_steps} is above the resolution {dataset.resolution}: "
                "lower the step, or raise the resolution"
            ),
        )
