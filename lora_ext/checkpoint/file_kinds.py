"""What a tensor file is, told from its tensors' names: a checkpoint of a known kind, or what it seems to be instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.checkpoint.inpainting import INPAINTING_CHANNELS
from lora_ext.checkpoint.layouts import UNET_PREFIX, VAE_PREFIX, Shapes
from lora_ext.protocols import UserError

Test = Callable[[Shapes], bool]

UNET_INPUT = f"{UNET_PREFIX}input_blocks.0.0.weight"
UNET_CONTEXT = f"{UNET_PREFIX}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
SD2_CONTEXT_DIM = 1024
TEXT_TO_IMAGE_CHANNELS = 4
CHOOSE = "Choose an SD1, SD2 or SDXL checkpoint"
SD2_TEXT_PREFIX = "cond_stage_model.model."
NETWORK_PARTS = ("lora_up", "lora_down", "lora_A.", "lora_B.", "hada_w1", "lokr_w", "oft_blocks", "on_input")


def _starts(*prefixes: str) -> Test:
    return lambda shapes: any(key.startswith(prefixes) for key in shapes)


def _holds(*parts: str) -> Test:
    return lambda shapes: any(part in key for key in shapes for part in parts)


def _input_channels(shapes: Shapes) -> int:
    shape = shapes.get(UNET_INPUT, (0, 4))
    return int(shape[1]) if len(shape) > 1 else 4


REFUSED: tuple[tuple[Test, str], ...] = (
    (
        _holds(*NETWORK_PARTS),
        "seems to be a LoRA or LyCORIS network, not a checkpoint. Put it into models/Lora and use it with "
        "<lora:{stem}:1> in a prompt",
    ),
    (
        _starts("conditioner.embedders.0.model."),
        "is the SDXL refiner, which finishes the base model's pictures and is not trained. Choose an SDXL base "
        "checkpoint",
    ),
    (
        _holds("joint_blocks.", "double_blocks.", "single_transformer_blocks."),
        "is a transformer model (SD3, Flux or the like), which this version does not load. " + CHOOSE,
    ),
    (
        _starts("embedder.", "depth_model.", "cond_stage_model.roberta."),
        "is a checkpoint that takes pictures or another text encoder beside the prompt (unCLIP, depth, AltDiffusion), "
        "which this version does not load. " + CHOOSE,
    ),
    (_starts("control_model.", "input_hint_block."), "seems to be a ControlNet, not a checkpoint"),
    (
        _starts("down_blocks.", "mid_block.", "encoder.down_blocks.", "text_model."),
        "seems to be one part of a Diffusers folder. Choose the checkpoint as a single file",
    ),
    (
        lambda shapes: "emb_params" in shapes or "string_to_param" in shapes or "clip_l" in shapes,
        "seems to be a textual-inversion embedding, not a checkpoint",
    ),
    (
        lambda shapes: _starts("encoder.down.", "decoder.up.", VAE_PREFIX)(shapes) and not _starts(UNET_PREFIX)(shapes),
        "seems to be a VAE alone, not a checkpoint",
    ),
    (
        lambda shapes: not _starts(UNET_PREFIX)(shapes),
        "is not a Stable Diffusion checkpoint: none of its {count} tensors is called model.diffusion_model.…",
    ),
    (
        lambda shapes: _input_channels(shapes) not in (TEXT_TO_IMAGE_CHANNELS, INPAINTING_CHANNELS),
        "is an editing or depth model ({channels} input channels; text-to-image models have 4, inpainting models 9), "
        "which this version does not load. " + CHOOSE,
    ),
)


def refuse_other_kinds(path: Path, shapes: Shapes) -> None:
    """Raise `UserError` that says what the file seems to be, unless it is an SD1, SD2 or SDXL checkpoint."""
    for test, words in REFUSED:
        if test(shapes):
            reason = words.format(stem=path.stem, count=len(shapes), channels=_input_channels(shapes))
            raise UserError(f"{path}: {reason}.")


def architecture_of(shapes: Shapes) -> Architecture:
    """Which kind of checkpoint it is, by its text encoders; without them by its U-Net."""
    if _starts("conditioner.", f"{UNET_PREFIX}label_emb.")(shapes):
        return "SDXL"
    context = shapes.get(UNET_CONTEXT, ())
    is_sd2 = _starts(SD2_TEXT_PREFIX)(shapes) or (len(context) == 2 and context[1] == SD2_CONTEXT_DIM)
    return "SD2" if is_sd2 else "SD1"
