"""The neck: target-aware decoders with feature injection, one per branch."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule, ModuleDict
from pydantic import Field
from torch import Tensor, nn

from bootmae_mm.registry import MODELS
from bootmae_mm.validation import MAX_SIDE, Few, Options, Positive, Side, Size, require, validated

from .attention import DecoderAttention
from .block import run_block
from .tokens import sincos_pos_embed, take_tokens


class DecoderOptions(Options):
    """Options of a decoder; None for the value of the encoder, or (``context_block``) for no feature injection."""

    width: Annotated[Side, Field(multiple_of=4)] | None = None  # the sine-cosine position embedding needs the 4
    depth: Few = 2
    context_block: int | None = -1
    num_heads: Side | None = None
    mlp_ratio: Annotated[float, Field(gt=0, le=MAX_SIDE)] = 4.0
    eps: Positive = 1e-6


class PixelOptions(DecoderOptions):
    """Options of the pixel regressor."""

    width: Annotated[Side, Field(multiple_of=4)] | None = 512
    context_block: int | None = 0


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention to the context (feature injection), MLP; each pre-norm with a residual.

    Args:
        dims: Width of the decoder's tokens.
        context_dims: Width of the injected features, or None for no injection.
        num_heads: Number of heads of both attentions.
        mlp_ratio: Width of the MLP over ``dims``.
        eps: Epsilon of the norms.
    """

    def __init__(self, dims: int, context_dims: int | None, num_heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(dims, eps=eps)
        self.self_attn = DecoderAttention(dims, dims, num_heads)
        self.injects = context_dims is not None
        if context_dims is not None:
            self.query_norm = nn.LayerNorm(dims, eps=eps)
            self.context_norm = nn.LayerNorm(context_dims, eps=eps)
            self.cross_attn = DecoderAttention(dims, context_dims, num_heads)
        self.mlp_norm = nn.LayerNorm(dims, eps=eps)
        self.mlp = FFN(dims, int(dims * mlp_ratio), act_cfg=dict(type='GELU'))

    def forward(self, x: Tensor, context: Tensor | None, num_queries: int | None = None) -> Tensor:
        """Decode.

        Args:
            x: Tokens, (B, N, dims).
            context: Injected features, (B, 1 + V, context_dims); None without injection.
            num_queries: Compute only the last ``num_queries`` tokens; keys and values of the self-attention are still
                those of all tokens. Exact where the other tokens are not needed.

        Returns:
            Tensor (B, N or num_queries, dims).
        """
        normed = self.self_norm(x)  # (B, N, dims)
        queries = slice(None) if num_queries is None else slice(-num_queries, None)
        x = x[:, queries] + self.self_attn(normed[:, queries], normed)  # (B, Q, dims)
        if self.injects:
            x = x + self.cross_attn(self.query_norm(x), self.context_norm(context))
        return self.mlp(self.mlp_norm(x), identity=x)


class TargetAwareDecoder(BaseModule):
    """Decodes masked patches, with features of one block of the encoder injected (paper, section 3.3).

    Args:
        embed_dims: Width of the encoder.
        width: Width of the decoder.
        depth: Number of blocks.
        num_heads: Number of heads.
        grid_size: Rows and columns of patches.
        context_block: Block of the encoder that is injected, counted from 0; None for no injection.
        mlp_ratio: Width of the MLPs over ``width``.
        eps: Epsilon of the norms.
        with_cp: Use activation checkpointing.
    """

    def __init__(
        self,
        embed_dims: int,
        width: int,
        depth: int,
        num_heads: int,
        grid_size: tuple[int, int],
        context_block: int | None,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.with_cp = with_cp
        self.context_block = context_block
        self.embed = nn.Linear(embed_dims, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        # A buffer, so that checkpoints carry the authors' values; the row of the class token is never used.
        self.register_buffer('pos_embed', sincos_pos_embed(grid_size, width))
        context_dims = None if context_block is None else embed_dims
        self.blocks = nn.ModuleList(DecoderBlock(width, context_dims, num_heads, mlp_ratio, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=eps)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialize as the authors do: Xavier-uniform (k and v of self-attention each on their own), zero biases."""
        super().init_weights()
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                for part in module.weight.chunk(2) if name.endswith('self_attn.kv') else [module.weight]:
                    nn.init.xavier_uniform_(part)
                nn.init.zeros_(module.bias)

    def forward(
        self, latent: Tensor, context: Tensor | None, ids_mask: Tensor, ids_keep: Tensor | None = None
    ) -> Tensor:
        """Decode the masked patches.

        Args:
            latent: The encoder's output for the class token and the kept patches, (B, 1 + V, embed_dims).
            context: Outputs of ``context_block``, (B, 1 + V, embed_dims), or None without injection.
            ids_mask: Indices of the masked patches, (B, M).
            ids_keep: Indices of the kept patches, (B, V), to return their tokens too, for pictures.

        Returns:
            Tensor (B, M, width), in the order of ``ids_mask``; with ``ids_keep`` (B, V + M, width), kept ones first.
        """
        x = self.embed(latent)  # (B, 1 + V, width)
        # Under autocast the mask tokens are float32, and so is the residual stream, as in the authors' program.
        mask_tokens = self.mask_token + take_tokens(self.pos_embed[:, 1:], ids_mask)  # (B, M, width)
        x = torch.cat([x, mask_tokens], dim=1)  # (B, 1 + V + M, width)
        for block in self.blocks[:-1]:
            x = run_block(block, x, context, with_cp=self.with_cp)
        # The loss sees masked patches only, so the last block computes no others.
        queries = ids_mask.shape[1] + (0 if ids_keep is None else ids_keep.shape[1])
        return self.norm(run_block(self.blocks[-1], x, context, num_queries=queries, with_cp=self.with_cp))


@MODELS.register_module()
class BootMAENeck(BaseModule):
    """Target-aware decoders: the pixel regressor, the feature predictor, and any others by name.

    Args:
        embed_dims: Width of the encoder; :class:`BootMAE` fills in this and the next three.
        num_layers: Depth of the encoder.
        num_heads: Number of heads of the encoder.
        grid_size: Rows and columns of patches.
        pixel: Options of the pixel regressor (:class:`PixelOptions`), or None to leave it out.
        feature: Options of the feature predictor (:class:`DecoderOptions`), or None to leave it out.
        with_cp: Use activation checkpointing in the decoders.
        **others: Options of further decoders (:class:`DecoderOptions`), by name of the branch; None for none.

    Raises:
        ConfigError: If there is no decoder, a context block does not exist, or an MLP would have no units.
    """

    @validated
    def __init__(
        self,
        embed_dims: Side,
        num_layers: Side,
        num_heads: Side,
        grid_size: Size,
        pixel: PixelOptions | None = PixelOptions(),  # noqa: B008  not changed
        feature: DecoderOptions | None = DecoderOptions(),  # noqa: B008  not changed
        with_cp: bool = False,
        init_cfg: Any = None,
        **others: DecoderOptions | None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        branches = {name: given for name, given in dict(pixel=pixel, feature=feature, **others).items() if given}
        require(branches, 'the neck needs a decoder, but pixel and feature are None')
        self.decoders = ModuleDict()  # mmengine's, which passes init_weights on; torch's does not
        for name, given in branches.items():
            options = given.model_dump()
            options['width'] = options['width'] or embed_dims
            options['num_heads'] = options['num_heads'] or num_heads
            block, units = options['context_block'], int(options['mlp_ratio'] * options['width'])
            exists = block is None or -num_layers <= block < num_layers
            require(exists, f'neck.{name}.context_block must be in {-num_layers}..{num_layers - 1}, but is {block}')
            require(units, f'neck.{name}.mlp_ratio {options["mlp_ratio"]} makes the MLP hidden size zero')
            options['context_block'] = None if block is None else block % num_layers
            self.decoders[name] = TargetAwareDecoder(embed_dims, grid_size=grid_size, with_cp=with_cp, **options)

    @property
    def widths(self) -> dict[str, int]:
        """Width of each decoder, by name."""
        return {name: decoder.width for name, decoder in self.decoders.items()}

    @property
    def context_blocks(self) -> set[int]:
        """Blocks of the encoder whose outputs are injected."""
        return {d.context_block for d in self.decoders.values() if d.context_block is not None}

    def forward(self, latent: Tensor, context: dict[int, Tensor], ids_mask: Tensor) -> dict[str, Tensor]:
        """Decode for each target.

        Args:
            latent: (B, 1 + V, embed_dims).
            context: Outputs of ``context_blocks``, by block.
            ids_mask: (B, M).

        Returns:
            By name of the branch (``pixel``, ``feature``): tokens (B, M, width).
        """
        return {
            name: decoder(latent, context.get(decoder.context_block), ids_mask)
            for name, decoder in self.decoders.items()
        }
