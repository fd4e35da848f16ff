"""OpenCLIP's text tower: SD2's text encoder, and the second one of SDXL (Cherti et al. 2022, arXiv:2212.07143).

Our own module has the names of open_clip's; the encoder works on either.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.text.encoder import ChunkedTextEncoder, check_clip_skip
from lora_ext.checkpoint.text.fused_attention import FusedProjection, explicit_forward, fused_projections
from lora_ext.checkpoint.transfer import on_device

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from lora_ext.checkpoint.checkpoint import TextEncoder


@dataclass(frozen=True)
class OpenClipConfig:
    """Sizes of a text tower; `projection` None leaves out text_projection."""

    width: int
    layers: int
    heads: int
    vocabulary: int = 49408
    context_length: int = 77
    mlp_width: int | None = None
    projection: int | None = None


SD2_TEXT = OpenClipConfig(width=1024, layers=24, heads=16, projection=1024)
SDXL_TEXT_2 = OpenClipConfig(width=1280, layers=32, heads=20, projection=1280)


class ResidualAttentionBlock(nn.Module):
    """Self-attention and an MLP, each after a LayerNorm and added to its input."""

    def __init__(self, config: OpenClipConfig) -> None:
        super().__init__()
        width, mlp_width = config.width, config.mlp_width or 4 * config.width
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, config.heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, mlp_width), gelu=nn.GELU(), c_proj=nn.Linear(mlp_width, width))
        )

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(77, b, width) -> the same shape."""
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=attn_mask)[0]
        result: Tensor = x + self.mlp(self.ln_2(x))
        return result


class _Transformer(nn.Module):
    """The blocks, under open_clip's name for them."""

    def __init__(self, config: OpenClipConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(config) for _ in range(config.layers))


class OpenClipText(nn.Module):
    """The parameters of open_clip's text tower under their own names; `OpenClipTextEncoder` runs them."""

    def __init__(self, config: OpenClipConfig) -> None:
        super().__init__()
        self.config = config
        self.positional_embedding = nn.Parameter(torch.zeros(config.context_length, config.width))
        if config.projection is not None:
            self.text_projection = nn.Parameter(torch.zeros(config.width, config.projection))
        self.transformer = _Transformer(config)
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.ln_final = nn.LayerNorm(config.width)


class OpenClipTextEncoder(ChunkedTextEncoder):
    """A `TextEncoder` around an OpenCLIP text tower: ours, or open_clip's own as the WebUI has it.

    The states are those of the layer before the last. SD2 sends them through the final layer norm, where `clip_skip` N
    takes the Nth layer from that one on; its last layer is never run. SDXL (`pools`) takes them as they are, whatever
    `clip_skip` says, and the last layer's, normed and projected, at the first EOS of the first chunk as pooled vector.
    """

    padding = 0

    def __init__(
        self,
        module: nn.Module,
        key_prefix: str = "lora_te",
        tokenizer: CLIPTokenizer | None = None,
        pools: bool = False,
        penultimate: bool = True,
    ) -> None:
        """`penultimate` False: the last layer was left out of the file, so the last one that is there is taken."""
        super().__init__(module, key_prefix, tokenizer)
        self.pools = pools
        self.penultimate = penultimate
        self.projections = {
            f"transformer.resblocks.{number}.attn.{name}": projection
            for number, block in enumerate(self._blocks)
            for name, projection in fused_projections(block.attn).items()
        }
        """Path → q_proj, k_proj, v_proj of every layer's fused attention: what adapters attach to."""

    @property
    def _blocks(self) -> list[Any]:
        return list(self.module.transformer.resblocks)

    @property
    def layers(self) -> int:
        """How many layers have a say in what the U-Net is given."""
        count = len(self._blocks)
        return count if self.pools or not self.penultimate else count - 1

    def encode_pooled(self, ids: Tensor, clip_skip: int = 1) -> tuple[Tensor, Tensor | None]:
        """States (batch, 77·chunks, width) of ids (batch, chunks, 77), each chunk encoded by itself, and the pooled
        vector (batch, projection) of the first chunk, None where the checkpoint's U-Net takes none.
        """
        check_clip_skip(clip_skip, self.layers)
        batch, chunks, length = ids.shape
        flat = on_device(ids.reshape(batch * chunks, length), self.device)
        hidden = self._hidden(flat)
        if not self.pools:
            states = self.module.ln_final(hidden[-clip_skip])
            return states.reshape(batch, chunks * length, -1), None
        first = flat.unflatten(0, (batch, chunks))[:, 0]  # (batch, 77)
        last = self.module.ln_final(hidden[-1].unflatten(0, (batch, chunks))[:, 0])
        eos = (first == self._special_ids()[1]).int().argmax(dim=-1)  # of several the first
        pooled = last[torch.arange(batch, device=last.device), eos] @ self.module.text_projection.to(last.dtype)
        return hidden[-2].reshape(batch, chunks * length, -1), pooled

    def _hidden(self, ids: Tensor) -> list[Tensor]:
        """What the first layer takes and each that has a say gives: (batch, 77, width) of ids (batch, 77).

        Fewer tokens give the same at their places: none looks at what comes after it.
        """
        module = self.module
        x = module.token_embedding(ids) + module.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1],) * 2, -torch.inf, device=x.device, dtype=x.dtype).triu_(1)
        batch_first = self._blocks[0].attn.batch_first
        x = x if batch_first else x.transpose(0, 1)  # (77, batch, width)
        hidden = [x]
        with explicit_attention([self]):  # older torch does not cast the mask of its own under autocast
            for block in self._blocks[: self.layers]:
                hidden.append(block(hidden[-1], attn_mask=mask))
        return hidden if batch_first else [each.transpose(0, 1) for each in hidden]


@contextmanager
def explicit_attention(encoders: Iterable[TextEncoder]) -> Iterator[None]:
    """Let the fused attention of the encoders' layers go through q_proj, k_proj, v_proj and out_proj as modules.

    Where they are not called as modules, adapters have no say in their forward. `OpenClipTextEncoder` does so while it
    encodes; this is for those who run the module themselves (a host's pictures, gradient checkpointing in the backward
    pass). Works through each instance's `forward`, which is as it was afterwards.
    """
    undo: list[tuple[nn.Module, Any]] = []
    try:
        for encoder in encoders:
            if isinstance(encoder, OpenClipTextEncoder):
                for attention, projections in _by_attention(encoder):
                    undo.append((attention, attention.__dict__.get("forward")))
                    attention.__dict__["forward"] = explicit_forward(attention, projections)
        yield
    finally:
        for attention, overridden in reversed(undo):
            if overridden is None:
                del attention.__dict__["forward"]
            else:
                attention.__dict__["forward"] = overridden


def _by_attention(encoder: OpenClipTextEncoder) -> Iterator[tuple[nn.MultiheadAttention, list[FusedProjection]]]:
    """Each layer's attention with its q_proj, k_proj and v_proj."""
    for number, block in enumerate(encoder._blocks):
        path = f"transformer.resblocks.{number}.attn"
        yield block.attn, [encoder.projections[f"{path}.{name}"] for name in ("q_proj", "k_proj", "v_proj")]
