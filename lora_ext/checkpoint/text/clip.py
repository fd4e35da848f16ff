"""CLIP-L as transformers has it: the text encoder of SD1, and the first one of SDXL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lora_ext.checkpoint.text.encoder import ChunkedTextEncoder, check_clip_skip
from lora_ext.checkpoint.transfer import on_device

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


class HFClipTextEncoder(ChunkedTextEncoder):
    """A `TextEncoder` around transformers' `CLIPTextModel`; the module is the checkpoint's and is not changed.

    SD1 takes the last layer, or with `clip_skip` N the Nth from the end, and the final layer norm in either case. With
    `penultimate`, as in SDXL, it is the layer before the last, as it is, whatever `clip_skip` says.
    """

    def __init__(
        self,
        module: nn.Module,
        key_prefix: str = "lora_te",
        tokenizer: CLIPTokenizer | None = None,
        penultimate: bool = False,
    ) -> None:
        super().__init__(module, key_prefix, tokenizer)
        self.penultimate = penultimate

    def encode_pooled(self, ids: Tensor, clip_skip: int = 1) -> tuple[Tensor, None]:
        """States (batch, 77·chunks, width) of ids (batch, chunks, 77), each chunk encoded by itself; never pooled."""
        text_model = self.module.text_model
        check_clip_skip(clip_skip, len(text_model.encoder.layers))
        batch, chunks, length = ids.shape
        flat = on_device(ids.reshape(batch * chunks, length), self.device)
        if clip_skip == 1 and not self.penultimate:
            states: Tensor = self.module(input_ids=flat).last_hidden_state
        else:
            hidden: Sequence[Tensor] = self.module(input_ids=flat, output_hidden_states=True).hidden_states
            states = hidden[-2] if self.penultimate else text_model.final_layer_norm(hidden[-clip_skip])
        return states.reshape(batch, chunks * length, -1), None  # (b·n, 77, width) -> (b, n·77, width)
