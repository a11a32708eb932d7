"""The neck: two target-aware decoders with feature injection."""

from __future__ import annotations

import torch
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule, ModuleDict
from torch import Tensor, nn

from bootmae_mm.registry import MODELS
from bootmae_mm.values import MAX_SIDE, integer, number

from .attention import DecoderAttention
from .block import run_block
from .tokens import SharedTokens, sincos_pos_embed


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention to the context (feature injection), MLP; each pre-norm with a residual.

    Args:
        dims: Width of the decoder's tokens.
        context_dims: Width of the injected features, or None for no injection.
        num_heads: Number of heads of both attentions.
        mlp_ratio: Width of the MLP over ``dims``.
        eps: Of the norms.
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

    def forward(self, x: Tensor | SharedTokens, context: Tensor | None, num_queries: int | None = None) -> Tensor:
        """Decode.

        Args:
            x: (B, N, dims). :class:`SharedTokens` with all queries only.
            context: Injected features, (B, 1 + V, context_dims); None without injection.
            num_queries: Compute only the last so many tokens; keys and values of the self-attention are still those
                of all. Exact where the others are not needed.

        Returns:
            Tensor (B, N or num_queries, dims).
        """
        if isinstance(x, SharedTokens):
            assert num_queries is None
            shared, x = x.map(self.self_norm), x.joined()
            x = x + self.self_attn(shared, shared)
        else:
            normed = self.self_norm(x)
            queries = slice(None) if num_queries is None else slice(-num_queries, None)
            x = x[:, queries] + self.self_attn(normed[:, queries], normed)
        if self.injects:
            x = x + self.cross_attn(self.query_norm(x), self.context_norm(context))
        return self.mlp(self.mlp_norm(x), identity=x)


class TargetAwareDecoder(BaseModule):
    """Decodes masked patches, helped by features of one block of the encoder (paper, section 3.3).

    Args:
        embed_dims: Width of the encoder.
        width: Width of the decoder, divisible by 4.
        depth: Number of blocks.
        num_heads: Number of heads.
        grid_size: Rows and columns of patches.
        context_block: Block of the encoder that is injected, or None for no injection.
        mlp_ratio: Width of the MLPs over ``width``.
        eps: Of the norms.
        with_cp: Save memory by computing activations again in the backward pass.
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
        # A buffer, so that checkpoints carry the authors' values; the class token's row is never used.
        self.register_buffer('pos_embed', sincos_pos_embed(grid_size, width))
        context_dims = None if context_block is None else embed_dims
        self.blocks = nn.ModuleList(DecoderBlock(width, context_dims, num_heads, mlp_ratio, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=eps)

    def init_weights(self) -> None:
        """Initialise as the authors do: Xavier-uniform (k and v of self-attention each on their own), zero biases."""
        super().init_weights()
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        with torch.no_grad():
            for name, module in self.named_modules():
                if isinstance(module, nn.Linear):
                    for part in module.weight.chunk(2) if name.endswith('self_attn.kv') else [module.weight]:
                        nn.init.xavier_uniform_(part)
                    nn.init.zeros_(module.bias)

    def forward(
        self, latent: Tensor, context: Tensor | None, ids_mask: Tensor, ids_keep: Tensor | None = None
    ) -> Tensor:
        """Predict tokens of the masked patches.

        Args:
            latent: The encoder's output for the class token and kept patches, (B, 1 + V, embed_dims).
            context: Outputs of ``context_block``, (B, 1 + V, embed_dims), or None without injection.
            ids_mask: Indices of the masked patches, (B, M).
            ids_keep: Indices of the kept patches, (B, V), to return their tokens too, for pictures; no loss sees them.

        Returns:
            Tensor (B, M, width), in the order of ``ids_mask``; with ``ids_keep`` (B, V + M, width), kept ones first.
        """
        # Under autocast the mask tokens are float32 and so is, then, the residual stream, as in the authors' program.
        tokens = SharedTokens(self.embed(latent), (self.mask_token + self.pos_embed[:, 1:])[0], ids_mask)
        # The table has a row for every patch of an image: a batch with fewer masked patches is faster without.
        shares = len(self.blocks) > 1 and ids_mask.numel() > len(tokens.table)
        x = tokens if shares else tokens.joined()
        for block in self.blocks[:-1]:
            x = run_block(block, x, context, with_cp=self.with_cp)
        queries = ids_mask.shape[1] + (0 if ids_keep is None else ids_keep.shape[1])
        return self.norm(run_block(self.blocks[-1], x, context, num_queries=queries, with_cp=self.with_cp))


@MODELS.register_module()
class BootMAENeck(BaseModule):
    """The pixel regressor and the feature predictor, two target-aware decoders.

    Args:
        pixel: Options of the pixel regressor, or None to leave it out: ``width`` (512), ``depth`` (2),
            ``context_block`` (0, the shallow one), ``num_heads`` (the encoder's), ``mlp_ratio`` (4), ``eps`` of the
            norms (1e-6).
        feature: Options of the feature predictor, or None to leave it out: ``width`` (the encoder's), ``depth`` (2),
            ``context_block`` (-1, the last block), ``num_heads``, ``mlp_ratio``, ``eps``.
            ``context_block=None`` switches the injection of a decoder off.
        with_cp: Save memory by computing activations again in the backward pass (activation checkpointing), as that of
            the backbone does for the student.
        embed_dims: Width of the encoder; :class:`BootMAE` fills in this and the next three.
        num_layers: Depth of the encoder.
        num_heads: Heads of the encoder.
        grid_size: Rows and columns of patches.

    Raises:
        ValueError: If both decoders are left out, or an option is unknown or out of range.
    """

    DEFAULTS = dict(
        pixel=dict(width=512, depth=2, context_block=0, num_heads=None, mlp_ratio=4.0, eps=1e-6),
        feature=dict(width=None, depth=2, context_block=-1, num_heads=None, mlp_ratio=4.0, eps=1e-6),
    )

    def __init__(
        self,
        embed_dims: int,
        num_layers: int,
        num_heads: int,
        grid_size: tuple[int, int],
        pixel: dict | None = DEFAULTS['pixel'],
        feature: dict | None = DEFAULTS['feature'],
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if pixel is None and feature is None:
            raise ValueError('the neck needs a pixel or a feature decoder; both are None')
        self.decoders = ModuleDict()  # mmengine's, which passes init_weights on; torch's does not
        for name, options in (('pixel', pixel), ('feature', feature)):
            if options is None:
                continue
            if not isinstance(options, dict):
                raise ValueError(f'neck.{name} must be a dict of options or None, but is {options!r}')
            unknown = set(options) - set(self.DEFAULTS[name])
            if unknown:
                raise ValueError(
                    f'unknown option {sorted(unknown)} of the {name} decoder; '
                    f'there are {", ".join(self.DEFAULTS[name])}'
                )
            options = {**self.DEFAULTS[name], **options}
            options['context_block'] = self._block(options['context_block'], num_layers, name)
            options['width'] = embed_dims if options['width'] is None else options['width']
            options['num_heads'] = num_heads if options['num_heads'] is None else options['num_heads']
            self._check(options, f'neck.{name}')
            self.decoders[name] = TargetAwareDecoder(embed_dims, grid_size=grid_size, with_cp=with_cp, **options)

    @staticmethod
    def _block(index: int | None, num_layers: int, name: str) -> int | None:
        """The index from the front, checked."""
        if index is None:
            return None
        return integer(index, f'neck.{name}.context_block', -num_layers, num_layers - 1) % num_layers

    @staticmethod
    def _check(options: dict, name: str) -> None:
        width = integer(options['width'], f'{name}.width', 4, MAX_SIDE)
        if width % 4:
            raise ValueError(f'{name}.width {width} is not divisible by 4, as the sine-cosine position embedding needs')
        integer(options['depth'], f'{name}.depth', 1, 1000)
        integer(options['num_heads'], f'{name}.num_heads', 1, width)
        number(options['eps'], f'{name}.eps', above=0)
        if number(options['mlp_ratio'], f'{name}.mlp_ratio', above=0, most=MAX_SIDE) * width < 1:
            raise ValueError(
                f'{name}.mlp_ratio {options["mlp_ratio"]} leaves the MLP of a width of {width} without units'
            )

    @property
    def widths(self) -> dict[str, int]:
        """Width of each decoder that is there, by name."""
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
            ``pixel`` and ``feature`` (those that are there) -> (B, M, width of that decoder).
        """
        return {
            name: decoder(latent, context.get(decoder.context_block), ids_mask)
            for name, decoder in self.decoders.items()
        }
