"""How fast, how long, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting

OPTIMIZERS = (
    "AdamW", "AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit", "Lion", "Lion8bit", "PagedLion8bit",
    "SGD", "SGDNesterov", "SGDNesterov8bit", "DAdaptation", "DAdaptAdamPreprint", "DAdaptAdaGrad", "DAdaptAdam",
    "DAdaptAdan", "DAdaptAdanIP", "DAdaptLion", "DAdaptSGD", "Prodigy", "AdaFactor", "AdamWScheduleFree",
    "RAdamScheduleFree", "SGDScheduleFree", "ProdigyPlusScheduleFree", "CAME", "AdEMAMix", "ADOPT", "Muon", "Tiger",
)  # fmt: skip
SCHEDULES = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt",
    "cosine_with_min_lr", "warmup_stable_decay", "piecewise_constant", "adafactor", "rex",
    "cosine_annealing_warmup_restarts",
)  # fmt: skip


@dataclass(frozen=True)
class LearningSettings:
    """How fast, how long, and in which order."""

    learning_rate: float = setting(1e-4, "Learning rate", "For every part without a rate of its own.", minimum=0)
    unet_lr: float | None = setting(None, "U-Net rate", "Learning rate of the U-Net's part.", minimum=0)
    text_encoder_lr: float | None = setting(
        None, "Text-encoder rate", "Learning rate of the text encoder's part; half of the U-Net's is usual.", minimum=0
    )
    text_encoder_2_lr: float | None = setting(
        None, "Rate of text encoder 2", "SDXL's second text encoder; none takes the text-encoder rate.", minimum=0,
        sd_scripts="",
    )  # fmt: skip
    block_lr: str = setting(
        "", "Rates by block",
        "25 factors on the U-Net's rate for SD1's blocks (12 in, 1 middle, 12 out), 23 for SDXL's; 0 leaves it out.",
        sd_scripts="",
    )  # fmt: skip
    loraplus_lr_ratio: float | None = setting(
        None, "LoRA+ ratio", "Factor on the rate of the up weights, 4 to 16; learns faster.", minimum=0.01, maximum=1000
    )
    loraplus_unet_lr_ratio: float | None = setting(
        None, "LoRA+ ratio, U-Net", "The same for the U-Net alone.", minimum=0.01, maximum=1000
    )
    loraplus_text_encoder_lr_ratio: float | None = setting(
        None, "LoRA+ ratio, text encoder", "The same for the text encoder alone.", minimum=0.01, maximum=1000
    )
    stop_text_encoder_training: int | None = setting(
        None, "Stop text encoder",
        "The text encoder stands still after this share of the steps; 0 and 100 train it to the end.", minimum=0,
        maximum=100, unit="%", sd_scripts="stop_text_encoder_training_pct",
    )  # fmt: skip
    optimizer_type: str = setting(
        "AdamW", "Optimizer", "The rule for each update; package.Class takes any other.", suggestions=OPTIMIZERS
    )
    optimizer_args: str = setting(
        "", "Optimizer arguments", "name=value pairs, such as betas=0.9,0.99 decouple=True weight_decay=0.01.", lines=2
    )
    weight_decay: float | None = setting(
        None, "Weight decay", "Pulls the trained weights towards zero; none is the optimizer's own.", minimum=0,
        maximum=1, sd_scripts="",
    )  # fmt: skip
    lr_scheduler: str = setting(
        "cosine", "Schedule", "How the rate runs over the steps; package.Class takes any other.", suggestions=SCHEDULES
    )
    lr_scheduler_args: str = setting("", "Schedule arguments", "name=value pairs for the schedule's class.", lines=2)
    lr_warmup_steps: float = setting(
        0.0, "Warmup", "Steps in which the rate rises from 0; below 1 it is a share of all steps.", minimum=0,
        unit="steps",
    )  # fmt: skip
    lr_decay_steps: float = setting(
        0.0, "Decay", "Steps of the fall at the end of warmup_stable_decay; below 1 a share of all.", minimum=0,
        unit="steps",
    )  # fmt: skip
    lr_scheduler_num_cycles: int = setting(
        1, "Cycles", "Cycles of a schedule with restarts: 4 give three restarts.", minimum=1, maximum=10000
    )
    lr_scheduler_power: float = setting(
        1.0, "Power", "Of the polynomial schedule; near 0 the rate falls late.", minimum=0, maximum=100
    )
    lr_scheduler_timescale: int | None = setting(
        None, "Timescale", "Of inverse_sqrt; none is the warmup's length.", minimum=1, unit="steps"
    )
    lr_scheduler_min_lr_ratio: float | None = setting(
        None, "Lowest rate",
        "Share of the rate that cosine_with_min_lr, warmup_stable_decay, rex and the warm restarts end at.", minimum=0,
        maximum=1,
    )  # fmt: skip
    lr_cycle_warmup_steps: float = setting(
        0.0, "Cycle warmup", "Warmup of each further cycle of the warm restarts; below 1 a share of the cycle.",
        minimum=0, unit="steps", sd_scripts="",
    )  # fmt: skip
    lr_cycle_decay: float = setting(
        1.0, "Cycle decay", "Factor on the highest rate from cycle to cycle.", minimum=0.01, maximum=1, sd_scripts=""
    )
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
    ema_decay: float | None = setting(
        None, "EMA", "Files, samples and validation take a running average of the weights; 0.999 is usual.",
        minimum=0.5, maximum=0.99999, sd_scripts="",
    )  # fmt: skip
    stop_after_bad_steps: int = setting(
        5, "Bad steps", "So many steps in a row without a finite loss or gradient end the run.", minimum=1,
        maximum=1000, unit="steps", sd_scripts="",
    )  # fmt: skip
    seed: int = setting(42, "Seed", "The same seed gives the same network.", minimum=0, maximum=2**32 - 1)
