"""One block of the encoder, and how blocks are run."""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import SelfAttention
from .relative_position import RelativePositionBias


def _as(kind: type, module: nn.Module) -> nn.Module:
    """The same module, parameters and all, as one of another class."""
    new: Any = object.__new__(kind)
    new.__dict__.update(module.__dict__)
    return new


def run_block(block: nn.Module, *args: Any, with_cp: bool, **kwargs: Any) -> Tensor:
    """The block's output; ``with_cp`` does not keep its activations, but computes them again in the backward pass."""
    if with_cp and block.training and torch.is_grad_enabled():
        return checkpoint(block, *args, use_reentrant=False, **kwargs)
    return block(*args, **kwargs)


class EncoderBlock(TransformerEncoderLayer):
    """mmpretrain's pre-norm block around :class:`SelfAttention`: weights, options and names are the same.

    mmpretrain's ``VisionTransformer`` names the class of its blocks in its constructor, so they are made there and
    turned into these by :meth:`of`.
    """

    @classmethod
    def of(
        cls, layer: TransformerEncoderLayer, window_size: int = 0, rel_pos_bias: RelativePositionBias | None = None
    ) -> EncoderBlock:
        """Take over a block of mmpretrain, with what downstream tasks add to its attention."""
        block = _as(cls, layer)
        block.attn = _as(SelfAttention, layer.attn)
        block.attn.window_size = window_size
        block.attn.rel_pos_bias = rel_pos_bias
        for path in (block.attn.out_drop, block.ffn.dropout_layer):
            if hasattr(path, 'drop_prob'):  # mmpretrain's is a number of numpy: torch.compile would cut the block there
                path.drop_prob = float(path.drop_prob)
        return block

    def forward(self, x: Tensor, query: Tensor | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        """The block's output for all tokens, or for chosen ones only.

        Args:
            x: Tokens, (B, N, D).
            query: Tokens of ``x`` whose output is wanted, (B, Q, D); keys and values are those of all tokens.
            grid: Rows and columns of patches; needed for windows and relative-position bias.

        Returns:
            Tensor (B, N, D), or (B, Q, D) with ``query``.
        """
        if query is None:
            x = x + self.attn(self.ln1(x), grid=grid)
        else:
            x = query + self.attn(self.ln1(x), self.ln1(query), grid=grid)
        return self.ffn(self.ln2(x), identity=x)
