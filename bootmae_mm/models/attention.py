"""Attention without a key bias: over all tokens, for chosen queries only, or in windows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn

from bootmae_mm.validation import require

from .relative_position import RelativePositionBias


def without_key_bias(bias: Tensor | None, start: int, keys: int) -> Tensor | None:
    """Replace the key part of a fused bias (``start : start + keys``) by zeros.

    A bias of the keys adds the same number to all logits of a query, which softmax cancels. Its gradient would be
    rounding noise that AdamW scales up; cut out of the graph, the gradient is exactly zero and a zero stays zero. (The
    authors and BEiT have no such parameter. It exists here so that weights fit mmpretrain's fused ``qkv`` layer.)
    """
    if bias is None:
        return None
    return torch.cat([bias[:start], bias.new_zeros(keys), bias[start + keys :]])


def attend(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, dropout: float = 0.0, bias: Tensor | None = None
) -> Tensor:
    """Multi-head attention: (B, Q, W), (B, K, W), (B, K, W) -> (B, Q, W).

    ``bias`` (heads, Q, K) is added to the logits, which are scaled by head_width ** -0.5.
    """
    query, key, value = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))  # (B, h, N, w)
    bias = None if bias is None else bias.to(query.dtype)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    return out.transpose(1, 2).flatten(2)  # (B, Q, W)


def window_bands(length: int, size: int) -> list[tuple[int, int, int]]:
    """Split one side of the grid into (start, stop, window size): the full windows, and the rest if there is one.

    ``window_bands(70, 16)`` is ``[(0, 64, 16), (64, 70, 6)]``.
    """
    full = length // size * size
    return [band for band in ((0, full, size), (full, length, length - full)) if band[1] > band[0]]


def attend_in_windows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    grid: tuple[int, int],
    size: int,
    dropout: float = 0.0,
    bias: RelativePositionBias | None = None,
) -> Tensor:
    """Attention within non-overlapping windows of ``size`` x ``size`` patches (ViTDet, arXiv 2203.16527).

    Where the grid is not divisible, the last windows of a row or column are smaller. (ViTDet pads instead, and its
    padding takes part in the attention.)

    Args:
        query, key, value: (B, rows * columns, W), patches in row-major order.
        num_heads: Number of heads.
        grid: Rows and columns of patches.
        size: Side of a window in patches.
        dropout: Dropout rate of the attention weights.
        bias: Bias of the logits within a window.

    Returns:
        Tensor (B, rows * columns, W).
    """
    maps = [x.unflatten(1, grid) for x in (query, key, value)]  # (B, rows, columns, W) each
    rows = []
    for top, bottom, height in window_bands(grid[0], size):
        row = []
        for left, right, width in window_bands(grid[1], size):
            windows = [
                x[:, top:bottom, left:right]
                .unflatten(2, (-1, width))
                .unflatten(1, (-1, height))
                .transpose(2, 3)  # (B, window rows, window columns, height, width, W)
                for x in maps
            ]
            shape = windows[0].shape
            q, k, v = (x.reshape(-1, height * width, shape[-1]) for x in windows)  # (B * windows, height * width, W)
            out = attend(q, k, v, num_heads, dropout, None if bias is None else bias((height, width)))
            row.append(
                out.view(shape).transpose(2, 3).flatten(3, 4).flatten(1, 2)
            )  # (B, bottom - top, right - left, W)
        rows.append(torch.cat(row, dim=2))  # (B, bottom - top, columns, W)
    return torch.cat(rows, dim=1).flatten(1, 2)


class SelfAttention(MultiheadAttention):
    """mmpretrain's attention with the same weights and options, and these differences.

    The bias of the keys is ignored (see :func:`without_key_bias`), and there may be fewer queries than keys.
    Downstream, attention may be limited to windows and have a relative-position bias.

    Args:
        *args: Arguments of ``MultiheadAttention``.
        window_size: Side of a window in patches; 0 for attention over the whole image.
        rel_pos_bias: Relative-position bias of the logits.
        **kwargs: Arguments of ``MultiheadAttention``.
    """

    def __init__(
        self, *args: Any, window_size: int = 0, rel_pos_bias: RelativePositionBias | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.window_size = window_size
        self.rel_pos_bias = rel_pos_bias

    def weights(self, x: Tensor, query: Tensor) -> Tensor:
        """Attention weights without a bias of positions: (B, N, D), (B, Q, D) -> (B, heads, Q, N)."""
        width = self.embed_dims
        bias = None if self.qkv.bias is None else self.qkv.bias[:width]
        q = F.linear(query, self.qkv.weight[:width], bias)  # (B, Q, D)
        k = F.linear(x, self.qkv.weight[width : 2 * width])  # (B, N, D); a bias of the keys would change nothing
        q, k = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in (q, k))  # (B, h, ., w)
        return (q @ k.transpose(2, 3) * (width // self.num_heads) ** -0.5).softmax(dim=3)

    def forward(self, x: Tensor, query: Tensor | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        """Attend.

        Args:
            x: Tokens that give keys and values, (B, N, D).
            query: Tokens that give the queries, (B, Q, D); ``x`` by default. Not with windows or bias.
            grid: Rows and columns of patches; needed for windows and bias.

        Returns:
            Tensor (B, Q, D), or (B, N, D) without ``query``.
        """
        width = self.embed_dims
        bias = without_key_bias(self.qkv.bias, width, width)
        if query is None:
            q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, dim=2)  # (B, N, D) each
        else:
            query_bias, other_bias = (None, None) if bias is None else (bias[:width], bias[width:])
            q = F.linear(query, self.qkv.weight[:width], query_bias)  # (B, Q, D)
            k, v = F.linear(x, self.qkv.weight[width:], other_bias).chunk(2, dim=2)  # (B, N, D) each
        dropout = self.attn_drop if self.training else 0.0
        if self.window_size:
            assert grid is not None and query is None
            out = attend_in_windows(q, k, v, self.num_heads, grid, self.window_size, dropout, self.rel_pos_bias)
        else:
            out = attend(q, k, v, self.num_heads, dropout, self.rel_pos_bias and self.rel_pos_bias(grid))
        return self.out_drop(self.gamma1(self.proj_drop(self.proj(out))))


class DecoderAttention(nn.Module):
    """Attention of the decoders: queries from one sequence, keys and values from the same or another.

    The inner width is ``num_heads * (query_dims // num_heads)``: 504 for 512 and 12 heads, as in the authors' weights.

    Args:
        query_dims: Width of the query tokens and of the output.
        context_dims: Width of the tokens that give keys and values.
        num_heads: Number of heads.
    """

    def __init__(self, query_dims: int, context_dims: int, num_heads: int) -> None:
        super().__init__()
        fits = num_heads <= query_dims
        require(fits, f'num_heads must be at most the width of the decoder {query_dims}, but is {num_heads}')
        self.num_heads = num_heads
        self.inner_dims = num_heads * (query_dims // num_heads)
        self.q = nn.Linear(query_dims, self.inner_dims)
        self.kv = nn.Linear(context_dims, 2 * self.inner_dims)
        self.proj = nn.Linear(self.inner_dims, query_dims)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """(B, Q, query_dims), (B, N, context_dims) -> (B, Q, query_dims)."""
        q = self.q(query)  # (B, Q, inner)
        bias = without_key_bias(self.kv.bias, 0, self.inner_dims)
        k, v = F.linear(context, self.kv.weight, bias).chunk(2, dim=2)  # (B, N, inner) each
        return self.proj(attend(q, k, v, self.num_heads))  # (B, Q, query_dims)
