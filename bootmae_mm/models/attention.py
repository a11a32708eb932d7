"""Attention whose keys have no bias, over all tokens or for chosen queries only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn


def without_key_bias(bias: Tensor | None, before: int, keys: int) -> Tensor | None:
    """Return the bias with its key part (``before : before + keys``) replaced by zeros.

    A bias of the keys adds the same number to all logits of a query, which softmax cancels: the function does not
    depend on it, and its gradient is rounding noise that AdamW would blow up. Cut out of the graph, its gradient is
    exactly zero and a zero stays zero. (The authors and BEiT have no such parameter; it exists here so that the
    weights fit mmpretrain's fused ``qkv`` layer.)
    """
    if bias is None:
        return None
    return torch.cat([bias[:before], bias.new_zeros(keys), bias[before + keys :]])


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int, dropout: float = 0.0) -> Tensor:
    """Multi-head attention with scale head_width ** -0.5: (B, Q, W), (B, K, W), (B, K, W) -> (B, Q, W)."""
    query, key, value = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout).transpose(1, 2).flatten(2)


class SelfAttention(MultiheadAttention):
    """mmpretrain's attention, weights and options alike, with two differences.

    The bias of the keys is ignored (see :func:`without_key_bias`), and queries may be fewer than keys.
    """

    def forward(self, x: Tensor, query: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: Tokens that give keys and values, (B, N, D).
            query: Tokens that ask, (B, Q, D); all of ``x`` by default.

        Returns:
            Tensor (B, Q, D), or (B, N, D) without ``query``.
        """
        width = self.embed_dims
        bias = without_key_bias(self.qkv.bias, width, width)
        if query is None:
            q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, dim=2)
        else:
            query_bias, other_bias = (None, None) if bias is None else (bias[:width], bias[width:])
            q = F.linear(query, self.qkv.weight[:width], query_bias)
            k, v = F.linear(x, self.qkv.weight[width:], other_bias).chunk(2, dim=2)
        out = attend(q, k, v, self.num_heads, self.attn_drop if self.training else 0.0)
        return self.out_drop(self.gamma1(self.proj_drop(self.proj(out))))


class DecoderAttention(nn.Module):
    """Attention of the decoders: queries from one sequence, keys and values from the same or another.

    The inner width is ``num_heads * (query_dims // num_heads)``: with 512 and 12 heads 504, as in the authors' weights.

    Args:
        query_dims: Width of the asking tokens and of the output.
        context_dims: Width of the tokens that give keys and values.
        num_heads: Number of heads.
    """

    def __init__(self, query_dims: int, context_dims: int, num_heads: int) -> None:
        super().__init__()
        if not 0 < num_heads <= query_dims:
            raise ValueError(f'num_heads must be in 1..{query_dims} (the width of the decoder), but is {num_heads}')
        self.num_heads = num_heads
        self.inner_dims = num_heads * (query_dims // num_heads)
        self.q = nn.Linear(query_dims, self.inner_dims)
        self.kv = nn.Linear(context_dims, 2 * self.inner_dims)
        self.proj = nn.Linear(self.inner_dims, query_dims)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """(B, Q, query_dims), (B, N, context_dims) -> (B, Q, query_dims)."""
        bias = without_key_bias(self.kv.bias, 0, self.inner_dims)
        k, v = F.linear(context, self.kv.weight, bias).chunk(2, dim=2)
        return self.proj(attend(self.q(query), k, v, self.num_heads))
