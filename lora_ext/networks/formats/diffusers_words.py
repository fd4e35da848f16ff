"""sd-scripts' names of modules as diffusers and peft have them: paths with dots, parts by their names there."""

from __future__ import annotations

import re

from lora_ext.networks.formats.blocks import diffusers_name, is_diffusers_name

_PARTS = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_WORDS = re.compile(
    r"(down_blocks|up_blocks|mid_block|transformer_blocks|proj_in|proj_out|to_q|to_k|to_v|to_out|time_emb_proj|"
    r"conv_shortcut|conv_in|conv_out|conv_norm_out|time_embedding|add_embedding|linear_1|linear_2|text_model|self_attn|"
    r"[qkv]_proj|out_proj|layer_norm1|layer_norm2|final_layer_norm|text_projection|[a-z]+\d?|\d+)(?:_|$)"
)


def diffusers_path(key: str) -> str | None:
    """`lora_unet_input_blocks_4_1_proj_in` → `unet.down_blocks.1.attentions.0.proj_in`; None for what it does not have.

    For keys as canonical names have them: SD1 and SD2 in diffusers' blocks, SDXL in ldm's.
    """
    for prefix, part in _PARTS.items():
        if not key.startswith(prefix):
            continue
        module = key.removeprefix(prefix)
        if part == "unet":
            module = diffusers_name(module)
            known = is_diffusers_name(module)
        else:
            known = module.startswith(("text_model_", "text_projection"))
        words = _WORDS.findall(module)
        return f"{part}.{'.'.join(words)}" if known and "_".join(words) == module else None
    return None
