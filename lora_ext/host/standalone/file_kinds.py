"""What a tensor file is, told from its tensors' names: an SD1 checkpoint, or what it seems to be instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lora_ext.host.standalone.architecture import CHECKPOINT_PREFIXES, Shapes
from lora_ext.protocols import UserError

Test = Callable[[Shapes], bool]

UNET_INPUT = f"{CHECKPOINT_PREFIXES.unet}input_blocks.0.0.weight"
UNET_CONTEXT = f"{CHECKPOINT_PREFIXES.unet}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
SD2_CONTEXT_DIM = 1024
NETWORK_PARTS = ("lora_up", "lora_down", "lora_A.", "lora_B.", "hada_w1", "lokr_w", "oft_blocks", "on_input")


def _starts(*prefixes: str) -> Test:
    return lambda shapes: any(key.startswith(prefixes) for key in shapes)


def _holds(*parts: str) -> Test:
    return lambda shapes: any(part in key for key in shapes for part in parts)


def _input_channels(shapes: Shapes) -> int:
    shape = shapes.get(UNET_INPUT, (0, 4))
    return int(shape[1]) if len(shape) > 1 else 4


def _is_sd2(shapes: Shapes) -> bool:
    context = shapes.get(UNET_CONTEXT, ())
    return _starts("cond_stage_model.model.")(shapes) or (len(context) == 2 and context[1] == SD2_CONTEXT_DIM)


REFUSED: tuple[tuple[Test, str], ...] = (
    (
        _holds(*NETWORK_PARTS),
        "seems to be a LoRA or LyCORIS network, not a checkpoint. Put it into models/Lora and use it with "
        "<lora:{stem}:1> in a prompt",
    ),
    (_starts("conditioner."), "is an SDXL checkpoint, which this version does not load. Choose an SD1 checkpoint"),
    (_is_sd2, "is an SD2 checkpoint, which this version does not load. Choose an SD1 checkpoint"),
    (
        _holds("joint_blocks.", "double_blocks.", "single_transformer_blocks."),
        "is a transformer model (SD3, Flux or the like), which this version does not load. Choose an SD1 checkpoint",
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
        lambda shapes: (
            _starts("encoder.down.", "decoder.up.", CHECKPOINT_PREFIXES.vae)(shapes)
            and not _starts(CHECKPOINT_PREFIXES.unet)(shapes)
        ),
        "seems to be a VAE alone, not a checkpoint",
    ),
    (
        lambda shapes: not _starts(CHECKPOINT_PREFIXES.unet)(shapes),
        "is not a Stable Diffusion checkpoint: none of its {count} tensors is called model.diffusion_model.…",
    ),
    (
        lambda shapes: _input_channels(shapes) != 4,
        "is an inpainting or editing model ({channels} input channels, not 4), which this version does not load. "
        "Choose a text-to-image SD1 checkpoint",
    ),
)


def refuse_other_kinds(path: Path, shapes: Shapes) -> None:
    """Raise `UserError` that says what the file seems to be, unless it is a text-to-image SD1 checkpoint."""
    for test, words in REFUSED:
        if test(shapes):
            reason = words.format(stem=path.stem, count=len(shapes), channels=_input_channels(shapes))
            raise UserError(f"{path}: {reason}.")
