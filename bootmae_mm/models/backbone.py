"""The encoder: a plain vision transformer, mmpretrain's with two passes for pretraining."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from mmpretrain.models import VisionTransformer
from torch import Tensor, nn

from bootmae_mm.registry import MODELS

from .attention import SelfAttention
from .tokens import patch_grid, sincos_pos_embed, take_patches, take_tokens, to_pair


def _arch(embed_dims: int, num_layers: int, num_heads: int) -> dict:
    return dict(embed_dims=embed_dims, num_layers=num_layers, num_heads=num_heads, feedforward_channels=4 * embed_dims)


@MODELS.register_module()
class BootMAEViT(VisionTransformer):
    """Plain ViT of BootMAE; its weights load in mmpretrain's ``VisionTransformer`` and the other way round.

    Pre-norm blocks, LayerNorm eps 1e-6, class token, fixed 2-D sine-cosine position embedding, no bias of the keys.
    Options and outputs of :meth:`forward` are those of mmpretrain's ``VisionTransformer``; pretraining uses
    :meth:`encode_visible` (student) and :meth:`encode_patches` (teacher) instead.

    Args:
        arch: ``'t'``, ``'s'``, ``'b'``, ``'l'``, ``'h'``, another name of ``arch_zoo``, or a dict with ``embed_dims``,
            ``num_layers``, ``num_heads`` and ``feedforward_channels``. Deliberate oddity: ``'s'`` is the usual ViT-S
            (384 wide, 12 deep), not the one mmpretrain gives that name (768 wide, 8 deep).
        img_size: Height and width of the images in pixels, divisible by ``patch_size``.
        patch_size: Edge of a patch in pixels.
        **kwargs: As for ``VisionTransformer``.

    Raises:
        ValueError: On an unknown arch, an image not divisible by the patch, or a width that heads or the position
            embedding do not divide.
    """

    arch_zoo = {
        **VisionTransformer.arch_zoo,
        **dict.fromkeys(['t', 'ti', 'tiny'], _arch(192, 12, 3)),
        **dict.fromkeys(['s', 'small'], _arch(384, 12, 6)),
        **dict.fromkeys(['h', 'huge'], _arch(1280, 32, 16)),
    }

    def __init__(
        self, arch: str | dict = 'base', img_size: int | tuple[int, int] = 224, patch_size: int = 16, **kwargs: object
    ) -> None:
        self._check_arch(arch)
        self.grid_size = patch_grid(img_size, patch_size)
        super().__init__(arch=arch, img_size=to_pair(img_size, 'img_size'), patch_size=patch_size, **kwargs)
        self.patch_size = patch_size
        self.num_heads = self.arch_settings['num_heads']
        for layer in self.layers:
            layer.attn = self._without_key_bias(layer.attn)
        self.pos_embed = nn.Parameter(self._fixed_pos_embed(), requires_grad=False)

    @classmethod
    def _check_arch(cls, arch: str | dict) -> None:
        if isinstance(arch, str):
            if arch.lower() not in cls.arch_zoo:
                raise ValueError(f'unknown arch {arch!r}; there are {", ".join(sorted(cls.arch_zoo))}')
            return
        needed = {'embed_dims', 'num_layers', 'num_heads', 'feedforward_channels'}
        if not isinstance(arch, dict) or not needed <= set(arch):
            raise ValueError(f'a custom arch is a dict with {", ".join(sorted(needed))}, but is {arch!r}')
        bad = {key: arch[key] for key in sorted(needed) if not isinstance(arch[key], int) or arch[key] < 1}
        if bad:
            raise ValueError(f'arch needs positive ints, but has {bad}')
        if arch['embed_dims'] % arch['num_heads']:
            raise ValueError(f'embed_dims {arch["embed_dims"]} is not divisible by num_heads {arch["num_heads"]}')

    @staticmethod
    def _without_key_bias(attn: nn.Module) -> SelfAttention:
        """The same attention as :class:`SelfAttention`; its submodules are taken over."""
        new = SelfAttention.__new__(SelfAttention)
        new.__dict__.update(attn.__dict__)
        return new

    def _fixed_pos_embed(self) -> Tensor:
        embed = sincos_pos_embed(self.grid_size, self.embed_dims)
        return embed if self.with_cls_token else embed[:, 1:]

    def init_weights(self) -> None:
        """Initialise as the authors do, or from ``init_cfg=dict(type='Pretrained', ...)``.

        Xavier-uniform linear layers (q, k and v each on their own) and patch embedding, zero biases, class token
        normal with std 1e-6. Source: ``modeling_pretrain_bootmae.py``.
        """
        super().init_weights()
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            return
        with torch.no_grad():
            for name, module in self.named_modules():
                if isinstance(module, nn.Linear):
                    for part in module.weight.chunk(3) if name.endswith('qkv') else [module.weight]:
                        nn.init.xavier_uniform_(part)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            projection = self.patch_embed.projection
            # Of the weight seen as a matrix (embed_dims, channels * patch * patch).
            bound = math.sqrt(6.0 / (projection.weight[0].numel() + self.embed_dims))
            nn.init.uniform_(projection.weight, -bound, bound)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
            if self.cls_token is not None:
                nn.init.normal_(self.cls_token, std=1e-6)
            self.pos_embed.copy_(self._fixed_pos_embed())

    def encode_visible(
        self, images: Tensor, ids_keep: Tensor, context_blocks: set[int] | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The student's pass: encode the class token and the kept patches only.

        Args:
            images: (B, C, H, W) of the configured size.
            ids_keep: Indices of the kept patches, (B, V).
            context_blocks: Blocks whose outputs are wanted as context.

        Returns:
            The latent (B, 1 + V, D) after the final norm, and the outputs of ``context_blocks`` *before* it, by block.
        """
        x = self._embed_kept(images, ids_keep)
        context = {}
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if context_blocks and index in context_blocks:
                context[index] = x
        return self.ln1(x), context

    def encode_patches(self, images: Tensor, ids: Tensor, norm: bool = False) -> Tensor:
        """The teacher's pass: encode whole images, return the features of chosen patches.

        The last block asks for the chosen patches only; keys and values are those of all tokens.

        Args:
            images: (B, C, H, W) of the configured size.
            ids: Indices of the patches to return, (B, M).
            norm: Apply the final norm.

        Returns:
            Tensor (B, M, D).
        """
        x = self.drop_after_pos(self._embed_all(images))
        x = self.pre_norm(x)
        for layer in self.layers[:-1]:
            x = layer(x)
        last = self.layers[-1]
        x = self._block_for(last, x, take_tokens(x, ids + self.num_extra_tokens))
        return self.ln1(x) if norm else x

    @staticmethod
    def _block_for(layer: nn.Module, x: Tensor, query: Tensor) -> Tensor:
        """A block's output for the tokens ``query`` of the sequence ``x``."""
        query = query + layer.attn(layer.ln1(x), layer.ln1(query))
        return layer.ffn(layer.ln2(query), identity=query)

    def _embed_all(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + L, D), with positions."""
        self._check_images(images)
        x, _ = self.patch_embed(images)
        return torch.cat([self._placed_cls_token(len(x)), x + self.pos_embed[:, self.num_extra_tokens :]], dim=1)

    def _embed_kept(self, images: Tensor, ids_keep: Tensor) -> Tensor:
        """(B, C, H, W), (B, V) -> (B, 1 + V, D), with positions; a convolution of the kept patches only."""
        self._check_images(images)
        projection = self.patch_embed.projection
        patches = take_patches(images, ids_keep, self.patch_size).flatten(2)
        x = F.linear(patches, projection.weight.flatten(1), projection.bias)
        x = x + take_tokens(self.pos_embed[:, self.num_extra_tokens :], ids_keep)
        return self.pre_norm(self.drop_after_pos(torch.cat([self._placed_cls_token(len(x)), x], dim=1)))

    def _placed_cls_token(self, batch: int) -> Tensor:
        if self.cls_token is None:
            return self.pos_embed.new_empty(batch, 0, self.embed_dims)
        return (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)

    def _check_images(self, images: Tensor) -> None:
        if images.dim() != 4 or tuple(images.shape[2:]) != tuple(self.img_size):
            raise ValueError(
                f'images of shape (batch, channels, {self.img_size[0]}, {self.img_size[1]}) are wanted '
                f'(img_size of the backbone), but their shape is {tuple(images.shape)}'
            )
