"""One block of the encoder, and activation checkpointing."""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.utils import QuickGELU
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bootmae_mm.registry import MODELS

from .attention import SelfAttention
from .relative_position import RelativePositionBias

# The activation of OpenAI's CLIP, under a name that a config in a checkpoint may have.
MODELS.register_module('QuickGELU', module=QuickGELU)


def run_block(block: nn.Module, *args: Any, with_cp: bool, **kwargs: Any) -> Tensor:
    """Run a block; ``with_cp`` recomputes its activations in the backward pass instead of keeping them."""
    if with_cp and block.training and torch.is_grad_enabled():
        # Reentrant checkpointing would not support keyword arguments.
        return checkpoint(block, *args, use_reentrant=False, **kwargs)
    return block(*args, **kwargs)


class EncoderBlock(TransformerEncoderLayer):
    """mmpretrain's pre-norm block with :class:`SelfAttention`; weights, options and names are the same.

    Args:
        embed_dims: Width of a token.
        num_heads: Number of heads.
        feedforward_channels: Width of the MLP.
        window_size: Side of an attention window in patches; 0 for none.
        rel_pos_bias: Relative-position bias of the logits.
        **kwargs: Arguments of ``TransformerEncoderLayer``.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        window_size: int = 0,
        rel_pos_bias: RelativePositionBias | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dims, num_heads, feedforward_channels, **kwargs)
        # Replaces the base class's attention in place, so that the order of parameters stays the same.
        self.attn = SelfAttention(
            embed_dims,
            num_heads,
            attn_drop=kwargs.get('attn_drop_rate', 0.0),
            proj_drop=kwargs.get('drop_rate', 0.0),
            dropout_layer=dict(type='DropPath', drop_prob=kwargs.get('drop_path_rate', 0.0)),
            qkv_bias=kwargs.get('qkv_bias', True),
            layer_scale_init_value=kwargs.get('layer_scale_init_value', 0.0),
            window_size=window_size,
            rel_pos_bias=rel_pos_bias,
        )

    def forward(
        self, x: Tensor, query: Tensor | None = None, grid: tuple[int, int] | None = None, weights: bool = False
    ) -> Tensor:
        """Compute the output for all tokens, or for chosen ones only.

        Args:
            x: Tokens, (B, N, D).
            query: Tokens of ``x`` whose output is wanted, (B, Q, D); keys and values are those of all tokens.
            grid: Rows and columns of patches; needed for windows and relative-position bias.
            weights: Return the attention weights of ``query`` instead. (Part of this method, as sharded parameters are
                complete only within it.)

        Returns:
            Tensor (B, N, D), or (B, Q, D) with ``query``, or (B, heads, Q, N) with ``weights``.
        """
        if weights:
            return self.attn.weights(self.ln1(x), self.ln1(query))
        if query is None:
            x = x + self.attn(self.ln1(x), grid=grid)  # (B, N, D)
        else:
            x = query + self.attn(self.ln1(x), self.ln1(query), grid=grid)  # (B, Q, D)
        return self.ffn(self.ln2(x), identity=x)
