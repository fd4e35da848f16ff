"""Attention whose q, k and v lie in one weight (`nn.MultiheadAttention`), as the three linear layers that they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class FusedProjection(nn.Linear):
    """One of q, k and v: the `rows` of an attention's `in_proj_weight` and `in_proj_bias` as a linear layer.

    It has no parameters of its own: weight and bias are looked up in the attention each time.
    """

    def __init__(self, attention: nn.MultiheadAttention, place: int) -> None:
        """`place` is 0 for q, 1 for k, 2 for v."""
        nn.Module.__init__(self)
        self.in_features = self.out_features = attention.embed_dim
        self.rows = slice(place * attention.embed_dim, (place + 1) * attention.embed_dim)
        self._owner = (attention,)  # in a tuple it is no child
        self.training = False

    @property
    def attention(self) -> nn.MultiheadAttention:
        """The attention that holds the weights."""
        return self._owner[0]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(width, width), a view of the attention's weight."""
        return self.attention.in_proj_weight[self.rows]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """(width,), a view of the attention's bias."""
        bias = self.attention.in_proj_bias
        return None if bias is None else bias[self.rows]

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) -> (…, width)."""
        return F.linear(x, self.weight, self.bias)


def fused_projections(attention: nn.MultiheadAttention) -> dict[str, FusedProjection]:
    """q_proj, k_proj and v_proj of an attention, anew each time."""
    return {name: FusedProjection(attention, place) for place, name in enumerate(PROJECTIONS)}


def explicit_forward(
    attention: nn.MultiheadAttention, projections: Sequence[FusedProjection]
) -> Callable[..., tuple[Tensor, None]]:
    """A forward for `attention` that calls its projections and `out_proj` as modules.

    It takes what `nn.MultiheadAttention.forward` takes and gives its output, (t, b, width) or batch first, without the
    attention's weights.
    """

    def forward(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        heads = []
        for projection, given in zip(projections, (query, key, value), strict=True):
            projected = projection(given if attention.batch_first else given.transpose(0, 1))
            heads.append(projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))  # (b, heads, t, d)
        mask = None if attn_mask is None else attn_mask.to(heads[0].dtype)
        attended = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
        output: Tensor = attention.out_proj(attended.transpose(1, 2).flatten(2))  # (b, t, width)
        return (output if attention.batch_first else output.transpose(0, 1)), None

    return forward
