"""The encoder: a plain vision transformer, mmpretrain's with two passes for pretraining."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from bootmae_mm.checkpoints.encoder import load_encoder
from bootmae_mm.registry import MODELS
from bootmae_mm.values import MAX_SIDE, integer, number, to_pair

from .block import EncoderBlock, run_block
from .relative_position import RelativePositionBias, resize_bias_table
from .tokens import patch_grid, sincos_pos_embed, take_patches, take_tokens


def _arch(embed_dims: int, num_layers: int, num_heads: int) -> dict:
    return dict(embed_dims=embed_dims, num_layers=num_layers, num_heads=num_heads, feedforward_channels=4 * embed_dims)


@MODELS.register_module()
class BootMAEViT(VisionTransformer):
    """Plain ViT of BootMAE; its weights load in mmpretrain's ``VisionTransformer`` and the other way round.

    Pre-norm blocks, LayerNorm eps 1e-6, class token, fixed 2-D sine-cosine position embedding, no bias of the keys.
    Pretraining uses :meth:`encode_visible` (student) and :meth:`encode_patches` (teacher). Downstream tasks use
    :meth:`forward` and the options below, all off by default; then it computes what the teacher computes.

    Args:
        arch: ``'t'``, ``'s'``, ``'b'``, ``'l'``, ``'h'``, another name of ``arch_zoo``, or a dict with ``embed_dims``,
            ``num_layers``, ``num_heads`` and ``feedforward_channels``. Deliberate oddity: ``'s'`` is the usual ViT-S
            (384 wide, 12 deep), not the one mmpretrain gives that name (768 wide, 8 deep).
        img_size: Height and width of the images in pixels, divisible by ``patch_size``. Downstream the usual size:
            the position embedding is stored for it, and resized where an image has another one.
        patch_size: Edge of a patch in pixels.
        out_indices: Blocks whose outputs :meth:`forward` returns, 0 the first and -1 the last. Blocks after the last
            of them do not run.
        frozen_stages: -1 to train everything, 0 to freeze the embedding, k to freeze also the first k blocks; with all
            blocks the norms after them too.
        learn_pos_embed: Train the position embedding (the authors do for segmentation).
        window_size: Edge in patches of windows that attention is confined to; 0 for none. Windows have no place for a
            class token: ``with_cls_token=False``.
        global_blocks: With windows, the blocks that see the whole image (ViTDet: the last of every quarter).
        rel_pos_bias: Add a relative-position bias (BEiT's) to every block; zero at first.
        with_cp: Save memory by computing activations again in the backward pass (activation checkpointing).
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix=..., min_share=1.0)`` loads weights for certain; see
            :func:`bootmae_mm.checkpoints.encoder.load_encoder`.
        **kwargs: As for ``VisionTransformer``: ``out_type``, ``final_norm``, ``drop_path_rate``,
            ``layer_scale_init_value``, ``with_cls_token``, ...

    Raises:
        ValueError: On an unknown arch, an image not divisible by the patch, a width that heads or the position
            embedding do not divide, a block that does not exist, or windows beside a class token.
    """

    init_cfg: Any  # mmengine's: a dict, a list of them, or None
    arch_zoo = {
        **VisionTransformer.arch_zoo,
        **dict.fromkeys(['t', 'ti', 'tiny'], _arch(192, 12, 3)),
        **dict.fromkeys(['s', 'small'], _arch(384, 12, 6)),
        **dict.fromkeys(['h', 'huge'], _arch(1280, 32, 16)),
    }

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        out_indices: int | Sequence[int] = -1,
        frozen_stages: int = -1,
        learn_pos_embed: bool = False,
        window_size: int = 0,
        global_blocks: Sequence[int] = (),
        rel_pos_bias: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
        **kwargs: object,
    ) -> None:
        self._check_arch(arch)
        integer(kwargs.get('in_channels', 3), 'in_channels', 1, MAX_SIDE)
        self.grid_size = patch_grid(img_size, patch_size)
        number(kwargs.get('drop_path_rate', 0.0), 'drop_path_rate', least=0, below=1)
        super().__init__(
            arch=arch, img_size=to_pair(img_size, 'img_size'), patch_size=patch_size, init_cfg=init_cfg, **kwargs
        )
        self.patch_size = patch_size
        self.num_heads = self.arch_settings['num_heads']
        self.out_indices = self._block_indices(out_indices, 'out_indices')
        if not self.out_indices:
            raise ValueError('out_indices names no block: the backbone would return nothing')
        self.window_size = window_size
        self.rel_pos_bias = rel_pos_bias
        self.with_cp = with_cp
        self._make_blocks(self._block_indices(global_blocks, 'global_blocks'))
        self.pos_embed = nn.Parameter(self._fixed_pos_embed(), requires_grad=learn_pos_embed)
        self.frozen_stages = integer(frozen_stages, 'frozen_stages', -1, self.num_layers)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if frozen_stages >= 0:
            self.pos_embed.requires_grad_(False)
            if self.cls_token is not None:
                self.cls_token.requires_grad_(False)

    @classmethod
    def _check_arch(cls, arch: str | dict) -> None:
        if isinstance(arch, str):
            if arch.lower() not in cls.arch_zoo:
                raise ValueError(f'unknown arch {arch!r}; there are {", ".join(sorted(cls.arch_zoo))}')
            return
        needed = {'embed_dims', 'num_layers', 'num_heads', 'feedforward_channels'}
        if not isinstance(arch, dict) or not needed <= set(arch):
            raise ValueError(f'a custom arch is a dict with {", ".join(sorted(needed))}, but is {arch!r}')
        for key in sorted(needed):
            integer(arch[key], f'arch.{key}', 1, 1000 if key == 'num_layers' else MAX_SIDE)
        if arch['embed_dims'] % 4:
            raise ValueError(
                f'embed_dims {arch["embed_dims"]} is not divisible by 4, as the sine-cosine position embedding needs'
            )
        if arch['embed_dims'] % arch['num_heads']:
            raise ValueError(f'embed_dims {arch["embed_dims"]} is not divisible by num_heads {arch["num_heads"]}')

    def _block_indices(self, indices: int | Sequence[int], name: str) -> list[int]:
        """Indices of blocks, counted from the front and sorted."""
        given = list(indices) if isinstance(indices, Sequence) else [indices]
        try:
            for index in given:
                integer(index, name, -self.num_layers, self.num_layers - 1)
        except ValueError as error:
            raise ValueError(
                f'{name} {indices!r} must be blocks in 0..{self.num_layers - 1} or, from the end, '
                f'-{self.num_layers}..-1'
            ) from error
        blocks = sorted({index % self.num_layers for index in given})
        if len(blocks) < len(given):
            raise ValueError(f'{name} {indices!r} names a block twice')
        return blocks

    def _make_blocks(self, global_blocks: list[int]) -> None:
        integer(self.window_size, 'window_size', least=0)
        if self.window_size and self.with_cls_token:
            raise ValueError('windows have no place for a class token: set with_cls_token=False beside window_size')
        if global_blocks and not self.window_size:
            raise ValueError('global_blocks mean nothing without window_size')
        for index, layer in enumerate(self.layers):
            window = 0 if index in global_blocks else self.window_size
            bias = None
            if self.rel_pos_bias:
                grid = (min(window, self.grid_size[0]), min(window, self.grid_size[1])) if window else self.grid_size
                bias = RelativePositionBias(grid, self.num_heads, self.with_cls_token)
            self.layers[index] = EncoderBlock.of(layer, window, bias)

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        modules = [self.patch_embed, self.drop_after_pos, self.pre_norm, *self.layers[: self.frozen_stages]]
        if self.frozen_stages == self.num_layers:
            modules += [getattr(self, name) for name in ('ln1', 'ln2') if hasattr(self, name)]
        return modules

    def train(self, mode: bool = True) -> BootMAEViT:
        """Set the mode; frozen parts stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _fixed_pos_embed(self) -> Tensor:
        embed = sincos_pos_embed(self.grid_size, self.embed_dims)
        return embed if self.with_cls_token else embed[:, 1:]

    def init_weights(self) -> None:
        """Initialise as the authors do; then load what ``init_cfg=dict(type='Pretrained', ...)`` names, for certain.

        Xavier-uniform linear layers (q, k and v each on their own) and patch embedding, zero biases, class token
        normal with std 1e-6. Source: ``modeling_pretrain_bootmae.py``. What a checkpoint cannot hold (a fresh norm of
        pooled features, relative-position bias, layer scale) keeps this.
        """
        given = self.init_cfg
        configs = given if isinstance(given, list) else [given] if given else []
        # mmengine's own loading would ignore what does not fit.
        self.init_cfg = [config for config in configs if not self._names_a_file(config)] or None
        super().init_weights()
        self.init_cfg = given
        self._init_as_the_authors()
        for config in configs:
            if self._names_a_file(config):
                options = {key: value for key, value in config.items() if key not in ('type', 'map_location')}
                print_log(f'backbone: {load_encoder(self, **options)}', logger='current')

    @staticmethod
    def _names_a_file(config: dict) -> bool:
        """Whether an ``init_cfg`` is ``Pretrained``, by whichever of the names mmengine knows it."""
        kind = config['type']
        name = kind if isinstance(kind, str) else kind.__name__
        return name.rsplit('.', 1)[-1] in ('Pretrained', 'PretrainedInit')

    def _init_as_the_authors(self) -> None:
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

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The pass of downstream tasks.

        Args:
            images: (B, C, H, W) of any size; at the right and the bottom padded with zeros to whole patches.

        Returns:
            One output for each of ``out_indices``, in ascending order, by ``out_type``: ``'featmap'`` (B, D, rows,
            columns), ``'avg_featmap'`` (B, D), the mean of the patch tokens after a norm of its own, ``'cls_token'``
            (B, D), ``'raw'`` (B, 1 + L, D). The final norm, if there is one, is applied after the last block only.
        """
        x, grid = self.patch_embed(images)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + resize_pos_embed(
            self.pos_embed, self.grid_size, grid, self.interpolate_mode, num_extra_tokens=self.num_extra_tokens
        )
        x = self.pre_norm(self.drop_after_pos(x))
        outs = []
        for index, layer in enumerate(self.layers[: self.out_indices[-1] + 1]):
            x = run_block(layer, x, grid=grid, with_cp=self.with_cp)
            if index in self.out_indices:
                last = index == self.num_layers - 1 and self.final_norm
                outs.append(self._format_output(self.ln1(x) if last else x, grid))
        return tuple(outs)

    @property
    def fresh_weights(self) -> set[str]:
        """Names of weights that pretraining does not have, and that may stay as initialised when it is loaded."""
        parts = ('rel_pos_bias', 'gamma1', 'gamma2')
        return {name for name in self.state_dict() if name.startswith('ln2.') or any(part in name for part in parts)}

    @torch.no_grad()
    def resize_positions(self, state: dict[str, Tensor], grid: tuple[int, int] | None = None) -> list[str]:
        """Resize in a state dict, in place, what depends on the number of patches: bicubic, as BEiT does.

        Args:
            state: Weights of an encoder in this project's names.
            grid: Rows and columns of patches that its position embedding is for; a square, or this encoder's, if None.

        Returns:
            Names of the weights that were resized.
        """
        wanted = self.state_dict()
        resized = []
        embed = state.get('pos_embed')
        # The same number of patches may still be another grid, which only the caller knows.
        if embed is not None and embed.dim() == 3 and (grid or embed.shape != wanted['pos_embed'].shape):
            extra = self.num_extra_tokens
            if not extra and 'cls_token' in state:
                embed = embed[:, 1:]
            source = _grid_of(embed.shape[1] - extra, grid, self.grid_size)
            if source is not None:
                state['pos_embed'] = resize_pos_embed(embed, source, self.grid_size, 'bicubic', extra)
                if source != self.grid_size:
                    resized.append('pos_embed')
        for name in [name for name in state if name.endswith('.rel_pos_bias.relative_position_bias_table')]:
            if name in wanted and state[name].shape != wanted[name].shape:
                bias = self.get_submodule(name.rpartition('.')[0])
                extra = 3 if bias.class_token else 0
                side = math.isqrt(len(state[name]) - extra)
                if side * side == len(state[name]) - extra and side % 2:
                    state[name] = resize_bias_table(state[name], ((side + 1) // 2,) * 2, bias.grid)
                    resized.append(name)
        return resized

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
        x = self.embed_kept(images, ids_keep)
        context = {}
        for index, layer in enumerate(self.layers):
            x = run_block(layer, x, with_cp=self.with_cp)
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
        x = self.drop_after_pos(self.embed_all(images))
        x = self.pre_norm(x)
        for layer in self.layers[:-1]:
            x = layer(x)
        last = self.layers[-1]
        x = last(x, take_tokens(x, ids + self.num_extra_tokens))
        return self.ln1(x) if norm else x

    def embed_all(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + L, D), with positions."""
        self._check_images(images)
        x, _ = self.patch_embed(images)
        return torch.cat([self._placed_cls_token(len(x)), x + self.pos_embed[:, self.num_extra_tokens :]], dim=1)

    def embed_kept(self, images: Tensor, ids_keep: Tensor) -> Tensor:
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


def _grid_of(patches: int, given: tuple[int, int] | None, wanted: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of a number of patches: as given, as wanted, or a square; None if none fits."""
    side = math.isqrt(patches)
    for rows, columns in [tuple(given)] if given else [wanted, (side, side)]:
        if rows * columns == patches:
            return rows, columns
    return None
