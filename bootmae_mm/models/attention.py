"""Attention whose keys have no bias: over all tokens, for chosen queries only, or in windows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn

from .relative_position import RelativePositionBias
from .tokens import SharedTokens


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


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    dropout: float = 0.0,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Multi-head attention with scale head_width ** -0.5: (B, Q, W), (B, K, W), (B, K, W) -> (B, Q, W).

    ``bias`` (heads, Q, K) is added to the logits; ``scale`` is another factor of the logits.
    """
    query, key, value = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    bias = None if bias is None else bias.to(query.dtype)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale)
    return out.transpose(1, 2).flatten(2)


def bands(length: int, size: int) -> list[tuple[int, int, int]]:
    """Cut an edge into windows: (start, stop, window) of the part whose windows are whole, and of the rest.

    ``bands(70, 16)`` is ``[(0, 64, 16), (64, 70, 6)]``.
    """
    whole = length // size * size
    return [part for part in ((0, whole, size), (whole, length, length - whole)) if part[2] and part[1] > part[0]]


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
    """Attention inside windows of ``size`` x ``size`` patches that do not overlap (ViTDet, arXiv 2203.16527).

    Where the grid is not divisible the last windows of a row or column are smaller. (ViTDet pads instead, and its
    padding takes part in the attention.)

    Args:
        query, key, value: (B, rows * columns, W), patches in row-major order.
        num_heads: Number of heads.
        grid: Rows and columns of patches.
        size: Edge of a window in patches.
        dropout: Of the attention weights.
        bias: Of the offsets in a window.

    Returns:
        Tensor (B, rows * columns, W).
    """
    maps = [x.unflatten(1, grid) for x in (query, key, value)]
    rows = []
    for top, bottom, height in bands(grid[0], size):
        row = []
        for left, right, width in bands(grid[1], size):
            windows = [
                x[:, top:bottom, left:right]
                .unflatten(2, (-1, width))
                .unflatten(1, (-1, height))
                .transpose(2, 3)  # (B, window rows, window columns, height, width, W)
                for x in maps
            ]
            shape = windows[0].shape
            q, k, v = (x.reshape(-1, height * width, shape[-1]) for x in windows)
            out = attend(q, k, v, num_heads, dropout, None if bias is None else bias((height, width)))
            row.append(out.view(shape).transpose(2, 3).flatten(3, 4).flatten(1, 2))
        rows.append(torch.cat(row, dim=2))
    return torch.cat(rows, dim=1).flatten(1, 2)


class SelfAttention(MultiheadAttention):
    """mmpretrain's attention, weights and options alike, with these differences.

    The bias of the keys is ignored (see :func:`without_key_bias`), and queries may be fewer than keys. Downstream,
    attention may be confined to windows and have a relative-position bias.

    Args:
        *args: As for ``MultiheadAttention``.
        window_size: Edge of a window in patches; 0 for attention over the whole image.
        rel_pos_bias: For a bias of the logits.
        **kwargs: As for ``MultiheadAttention``.
    """

    def __init__(
        self, *args: Any, window_size: int = 0, rel_pos_bias: RelativePositionBias | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.window_size = window_size
        self.rel_pos_bias = rel_pos_bias

    def forward(self, x: Tensor, query: Tensor | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        """Attend.

        Args:
            x: Tokens that give keys and values, (B, N, D).
            query: Tokens that ask, (B, Q, D); all of ``x`` by default. Not with windows or bias.
            grid: Rows and columns of patches; needed for windows and bias.

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
        dropout = self.attn_drop if self.training else 0.0
        if self.window_size:
            assert grid is not None and query is None
            out = attend_in_windows(q, k, v, self.num_heads, grid, self.window_size, dropout, self.rel_pos_bias)
        elif self.rel_pos_bias is not None:
            assert grid is not None and query is None
            out = attend(q, k, v, self.num_heads, dropout, self.rel_pos_bias(grid))
        else:
            out = attend(q, k, v, self.num_heads, dropout)
        return self.out_drop(self.gamma1(self.proj_drop(self.proj(out))))


def pad_heads(x: Tensor, dim: int, head_width: int, padded: int) -> Tensor:
    """Widen every head of a weight or bias from ``head_width`` to ``padded`` with zeros, along ``dim``."""
    after = 2 * (x.dim() - 1 - dim)  # F.pad counts from the last dimension
    return F.pad(x.unflatten(dim, (-1, head_width)), [0] * after + [0, padded - head_width]).flatten(dim, dim + 1)


def project(tokens: Tensor | SharedTokens, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer: (B, N, D) -> (B, N, weight's rows)."""
    if isinstance(tokens, SharedTokens):
        return tokens.map(lambda part: F.linear(part, weight, bias)).joined()
    return F.linear(tokens, weight, bias)


class DecoderAttention(nn.Module):
    """Attention of the decoders: queries from one sequence, keys and values from the same or another.

    The inner width is ``num_heads * (query_dims // num_heads)``: with 512 and 12 heads 504, as in the authors' weights.
    Fused kernels want heads of a multiple of 8, so that 42 are computed as 48: the weights get rows of zeros, which
    change no logit and no output.

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

    def forward(self, query: Tensor | SharedTokens, context: Tensor | SharedTokens) -> Tensor:
        """(B, Q, query_dims), (B, N, context_dims) -> (B, Q, query_dims)."""
        query_weight, query_bias = self.q.weight, self.q.bias
        weight, bias = self.kv.weight, without_key_bias(self.kv.bias, 0, self.inner_dims)
        out_weight = self.proj.weight
        head_width = self.inner_dims // self.num_heads
        padded = head_width + -head_width % 8
        if padded != head_width:
            query_weight, query_bias, weight, bias = (
                pad_heads(x, 0, head_width, padded) for x in (query_weight, query_bias, weight, bias)
            )
            out_weight = pad_heads(out_weight, 1, head_width, padded)
        q = project(query, query_weight, query_bias)
        k, v = project(context, weight, bias).chunk(2, dim=2)
        out = attend(q, k, v, self.num_heads, scale=head_width**-0.5)
        return F.linear(out, out_weight, self.proj.bias)
