"""Attention of one new token over keys and values that are kept as codes of 8 bits."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from compress.kernels.numbers.activations import Grid, grid_values
from compress.kernels.op import op


class Coded(NamedTuple):
    """Keys or values: `codes` uint8 [batch, heads, tokens, width], `scale` fp32 [batch, heads, tokens]; any strides."""

    codes: Tensor
    scale: Tensor
    grid: Grid

    def values(self) -> Tensor:
        """[batch, heads, tokens, width] fp32."""
        return grid_values(self.codes, self.scale.unsqueeze(-1), self.grid)


@op
def attend_codes(query: Tensor, keys: Coded, values: Coded, scaling: float, mask: Tensor | None = None) -> Tensor:
    """softmax(scaling · q·Kᵀ)·V for `query` [batch, heads, width], in its type; [batch, heads, width of values].

    Neighbouring heads of the query share one of keys and values. `mask` [batch, tokens] says which tokens are seen.
    """
    k, v = (coded.values().to(query.dtype) for coded in (keys, values))
    seen = None if mask is None else mask[:, None, None]
    found = scaled_dot_product_attention(query.unsqueeze(2), k, v, attn_mask=seen, scale=scaling, enable_gqa=True)
    return found.squeeze(2)
