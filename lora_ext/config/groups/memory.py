"""Memory and speed."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting


@dataclass(frozen=True)
class MemorySettings:
    """Memory and speed."""

    mixed_precision: str = setting(
        "no", "Precision",
        "no computes in fp32; bf16 needs half the memory on cards from RTX 3000 on, fp16 on older ones.",
        choices=("no", "fp16", "bf16"),
    )  # fmt: skip
    full_bf16: bool = setting(
        False, "All in bf16", "The network itself is trained in bf16 too: saves a little memory, learns less exactly."
    )
    gradient_checkpointing: bool = setting(
        False, "Gradient checkpointing", "Needs about a quarter of the memory and takes about a quarter longer."
    )
    on_out_of_memory: str = setting(
        "stop", "Out of memory",
        "stop ends the run and says what to change; retreat goes on with half the batch and twice the accumulation.",
        choices=("stop", "retreat"), sd_scripts="",
    )  # fmt: skip
    cache_latents: bool = setting(
        True, "Keep latents", "Encode each picture once and keep it; off encodes it anew each time."
    )
    cache_latents_to_disk: bool = setting(
        False,
        "Latents on disk",
        "Keep them in a folder lora-workshop-cache beside the pictures too: the next run starts at once.",
    )
    cache_text_encoder_outputs: bool = setting(
        True, "Keep text encodings", "Encode each caption once, where the text encoder is not trained."
    )
    cache_text_encoder_outputs_to_disk: bool = setting(False, "Text encodings on disk", "Keep them in files too.")
    caption_variants: int = setting(
        0, "Caption variants",
        "So many shuffled versions of each caption are encoded and kept; 0 keeps none where captions change.",
        minimum=0, maximum=1000, sd_scripts="",
    )  # fmt: skip
    vae: str = setting(
        "", "VAE", "VAE file to encode the pictures with, in place of the loaded one (sd-vae-ft-mse gives more detail)."
    )
    vae_batch_size: int = setting(
        1, "VAE batch", "Pictures that are encoded at once before the first step.", minimum=1, maximum=64
    )
