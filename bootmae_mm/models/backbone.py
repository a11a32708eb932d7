"""The encoder: mmpretrain's plain vision transformer, with two passes for pretraining."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.model import ModuleList
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from pydantic import Field
from torch import Tensor, nn

from bootmae_mm.registry import MODELS
from bootmae_mm.validation import Few, Natural, Options, Rate, Side, Size, parse, patch_grid, require, validated

from .block import EncoderBlock, run_block
from .encoder import PretrainingEncoder, init_configs, init_linear, is_pretrained
from .relative_position import RelativePositionBias, resize_bias_table
from .tokens import sincos_pos_embed, take_patches, take_tokens, tile_pos_embed

MAP_AND_TOKEN = 'featmap_cls_token'  # out_type for mmseg's DPTHead; its own ViT calls this output_cls_token


class Architecture(Options):
    """A custom ``arch`` of the backbone."""

    embed_dims: Annotated[Side, Field(multiple_of=4)]  # the sine-cosine position embedding needs the 4
    num_layers: Few
    num_heads: Side
    feedforward_channels: Side


def _arch(embed_dims: int, num_layers: int, num_heads: int) -> dict:
    return dict(embed_dims=embed_dims, num_layers=num_layers, num_heads=num_heads, feedforward_channels=4 * embed_dims)


@MODELS.register_module()
class BootMAEViT(PretrainingEncoder, VisionTransformer):
    """Plain ViT of BootMAE; its weights load in mmpretrain's ``VisionTransformer`` and the other way round.

    Pre-norm blocks, LayerNorm eps 1e-6, class token, fixed 2-D sine-cosine position embedding, no bias of the keys.
    Pretraining uses :meth:`encode_visible` (student) and :meth:`encode_patches` (teacher). Downstream tasks use
    :meth:`forward` and the options below, which are off by default.

    Args:
        arch: ``'t'``, ``'s'``, ``'b'``, ``'l'``, ``'h'``, another name of ``arch_zoo``, or a dict with the fields of
            :class:`Architecture`. Deliberate oddity: ``'s'`` is the usual ViT-S (384 wide, 12 deep), not the one that
            mmpretrain gives that name (768 wide, 8 deep).
        img_size: Height and width of the images in pixels, divisible by ``patch_size``. The position embedding is
            stored for this size; downstream it is resized for images of another size.
        patch_size: Side of a patch in pixels.
        in_channels: Channels of an image.
        out_indices: Blocks whose outputs :meth:`forward` returns; 0 is the first and -1 the last. Later blocks do not
            run.
        drop_rate: Dropout rate of tokens and projections.
        drop_path_rate: Stochastic depth rate of the last block; rises linearly from 0.
        qkv_bias: Use a bias for queries and values.
        norm_cfg: Config of the norms.
        layer_scale_init_value: Initial value of layer scale; 0 for none.
        layer_cfgs: Further options of all blocks, or a list with those of each block.
        frozen_stages: -1 to train everything, 0 to freeze the embedding, k to also freeze the first k blocks; with all
            blocks, the norms after them too.
        learn_pos_embed: Train the position embedding (as the authors do for segmentation).
        pos_embed_tile: Side, in patches, of a position embedding that repeats over the grid, at most the grid's; 0
            for one that is stretched over it. For images larger than those of pretraining whose objects are no larger:
            give the side of the pretraining grid. Weights of the grid of ``img_size`` itself stay as they are; with
            ``learn_pos_embed`` the copies are equal at the start only.
        window_size: Side of attention windows in patches; 0 for none. Needs ``with_cls_token=False``.
        global_blocks: With windows, the blocks with global attention (ViTDet: the last of every quarter).
        rel_pos_bias: Add a relative-position bias (BEiT) to every block; zero at first.
        with_cp: Use activation checkpointing: less memory, more time.
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix=..., min_share=1.0)`` loads weights strictly; see
            :func:`bootmae_mm.checkpoints.encoder.load_encoder`.
        **kwargs: Arguments of ``VisionTransformer``: ``out_type`` (see :meth:`forward`), ``final_norm``,
            ``with_cls_token``, ...

    Raises:
        ConfigError: For an unknown arch, an image not divisible by the patch, a width not divisible by the heads, a
            block that does not exist, windows with a class token, or an output that needs one without it.
    """

    arch_zoo = {
        **VisionTransformer.arch_zoo,
        **dict.fromkeys(['t', 'ti', 'tiny'], _arch(192, 12, 3)),
        **dict.fromkeys(['s', 'small'], _arch(384, 12, 6)),
        **dict.fromkeys(['h', 'huge'], _arch(1280, 32, 16)),
    }
    OUT_TYPES = {*VisionTransformer.OUT_TYPES, MAP_AND_TOKEN}

    @validated
    def __init__(
        self,
        arch: Any = 'base',
        img_size: Size = (224, 224),
        patch_size: Side = 16,
        in_channels: Side = 3,
        out_indices: Any = -1,
        drop_rate: Rate = 0.0,
        drop_path_rate: Rate = 0.0,
        qkv_bias: bool = True,
        norm_cfg: dict = dict(type='LN', eps=1e-6),  # noqa: B006  not changed
        layer_scale_init_value: float = 0.0,
        layer_cfgs: Any = dict(),  # noqa: B006, B008  not changed
        frozen_stages: int = -1,
        learn_pos_embed: bool = False,
        pos_embed_tile: Natural = 0,
        window_size: Natural = 0,
        global_blocks: Sequence[int] = (),
        rel_pos_bias: bool = False,
        with_cp: bool = False,
        init_cfg: Any = None,
        **kwargs: Any,
    ) -> None:
        arch_settings = self._read_arch(arch)
        self.grid_size = patch_grid(img_size, patch_size)
        # Without blocks: mmpretrain's constructor would make blocks of its own class.
        super().__init__(
            arch={**arch_settings, 'num_layers': 0},
            img_size=img_size,
            patch_size=patch_size,
            in_channels=in_channels,
            out_indices=0,
            drop_rate=drop_rate,
            norm_cfg=norm_cfg,
            init_cfg=init_cfg,
            **kwargs,
        )
        self.arch_settings = arch_settings
        self.num_layers, self.num_heads = arch_settings['num_layers'], arch_settings['num_heads']
        self.patch_size = patch_size
        self.with_cp = with_cp
        self.pos_embed_tile = pos_embed_tile
        rows, columns = self.grid_size
        fits = pos_embed_tile <= min(rows, columns)
        require(fits, f'pos_embed_tile {pos_embed_tile} is larger than the grid of {rows} x {columns} patches')
        self.window_size, self.rel_pos_bias = window_size, rel_pos_bias
        self.out_indices = self._block_indices(out_indices, 'out_indices')
        global_blocks = self._block_indices(global_blocks, 'global_blocks')
        require(self.out_indices, 'out_indices must name a block')
        has_output = self.out_type != MAP_AND_TOKEN or self.with_cls_token
        require(has_output, f'out_type={MAP_AND_TOKEN!r} needs with_cls_token=True')
        require(not window_size or not self.with_cls_token, 'window_size needs with_cls_token=False')
        require(window_size or not global_blocks, 'global_blocks needs window_size')
        layer_cfgs = [layer_cfgs] * self.num_layers if isinstance(layer_cfgs, dict) else layer_cfgs
        common = dict(
            **{name: value for name, value in arch_settings.items() if name != 'num_layers'},
            layer_scale_init_value=layer_scale_init_value,
            drop_rate=drop_rate,
            qkv_bias=qkv_bias,
            norm_cfg=norm_cfg,
        )
        self.layers = ModuleList()
        for index, rate in enumerate(np.linspace(0, drop_path_rate, self.num_layers).tolist()):
            window = 0 if index in global_blocks else window_size
            options = dict(window_size=window, rel_pos_bias=self._make_bias(window), **layer_cfgs[index])
            self.layers.append(EncoderBlock(**{**common, 'drop_path_rate': rate, **options}))
        self.pos_embed = nn.Parameter(self._fixed_pos_embed(), requires_grad=learn_pos_embed)
        self._freeze(frozen_stages)

    @classmethod
    def _read_arch(cls, arch: Any) -> dict:
        if isinstance(arch, str):
            names = ', '.join(sorted(cls.arch_zoo))
            require(arch.lower() in cls.arch_zoo, f'unknown arch {arch!r}; valid names: {names}')
            return cls.arch_zoo[arch.lower()]
        settings = parse(Architecture, arch, 'arch').model_dump()
        width, heads = settings['embed_dims'], settings['num_heads']
        require(width % heads == 0, f'arch.embed_dims {width} must be divisible by arch.num_heads {heads}')
        return settings

    def _block_indices(self, indices: Any, name: str) -> list[int]:
        """Indices of blocks, counted from the front and sorted."""
        given = list(indices) if isinstance(indices, Sequence) else [indices]
        last = self.num_layers - 1
        are_ints = all(isinstance(index, int) and not isinstance(index, bool) for index in given)
        blocks = sorted({index % self.num_layers for index in given if -last - 1 <= index <= last}) if are_ints else []
        require(
            len(blocks) == len(given),
            f'{name} {indices!r} must be different blocks in 0..{last} or, from the end, -{last + 1}..-1',
        )
        return blocks

    def _make_bias(self, window: int) -> RelativePositionBias | None:
        if not self.rel_pos_bias:
            return None
        grid = (min(window, self.grid_size[0]), min(window, self.grid_size[1])) if window else self.grid_size
        return RelativePositionBias(grid, self.num_heads, self.with_cls_token)

    def _freeze(self, frozen_stages: int) -> None:
        self.frozen_stages = frozen_stages
        is_stage = -1 <= frozen_stages <= self.num_layers
        require(is_stage, f'frozen_stages must be in -1..{self.num_layers}, but is {frozen_stages}')
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if frozen_stages >= 0:
            self.pos_embed.requires_grad_(False)
            if self.cls_token is not None:
                self.cls_token.requires_grad_(False)

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
        tile = self.pos_embed_tile
        embed = sincos_pos_embed((tile, tile) if tile else self.grid_size, self.embed_dims)
        if tile:
            embed = tile_pos_embed(embed, (tile, tile), self.grid_size, tile, extra=1)  # (1, 1 + L, D)
        return embed if self.with_cls_token else embed[:, 1:]

    def init_weights(self) -> None:
        """Initialize as the authors do; then load the checkpoint of ``init_cfg=dict(type='Pretrained', ...)`` strictly.

        Xavier-uniform linear layers (q, k and v each on their own) and patch embedding, zero biases, class token
        normal with std 1e-6. Source: ``modeling_pretrain_bootmae.py``. What a checkpoint cannot hold (a new norm of
        pooled features, relative-position bias, layer scale) keeps these values.
        """
        given = self.init_cfg
        # mmengine's own loading would ignore what does not fit.
        self.init_cfg = [config for config in init_configs(given) if not is_pretrained(config)] or None
        super().init_weights()
        self.init_cfg = given
        self._init_like_authors()
        self.load_init_cfg()

    @torch.no_grad()
    def _init_like_authors(self) -> None:
        init_linear(self.named_modules())
        projection = self.patch_embed.projection
        nn.init.xavier_uniform_(projection.weight.flatten(1))  # a matrix (D, channels * patch * patch)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        self.pos_embed.copy_(self._fixed_pos_embed())

    def forward(self, images: Tensor) -> tuple[Any, ...]:
        """Run the downstream pass.

        Args:
            images: (B, C, H, W) of any size; padded with zeros at the right and bottom to a multiple of the patch.

        Returns:
            One output per block of ``out_indices``, in ascending order, by ``out_type``: ``'featmap'`` (B, D, rows,
            columns), ``'avg_featmap'`` (B, D), the normed mean of the patch tokens, ``'cls_token'`` (B, D), ``'raw'``
            (B, 1 + L, D), ``'featmap_cls_token'`` a pair of feature map and class token. The final norm, if there is
            one, is applied after the last block only.
        """
        x, grid = self.patch_embed(images)  # (B, L, D)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # (B, 1 + L, D)
        x = x + self._positions(grid)  # (B, 1 + L, D)
        x = self.pre_norm(self.drop_after_pos(x))
        outs = []
        for index, layer in enumerate(self.layers[: self.out_indices[-1] + 1]):
            x = run_block(layer, x, grid=grid, with_cp=self.with_cp)
            if index in self.out_indices:
                last = index == self.num_layers - 1 and self.final_norm
                outs.append(self._format_output(self.ln1(x) if last else x, grid))
        return tuple(outs)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embedding of a grid, (1, 1 + L, D)."""
        if self.pos_embed_tile:
            return tile_pos_embed(self.pos_embed, self.grid_size, grid, self.pos_embed_tile, self.num_extra_tokens)
        return resize_pos_embed(self.pos_embed, self.grid_size, grid, self.interpolate_mode, self.num_extra_tokens)

    def _fitted(self, embed: Tensor, source: tuple[int, int]) -> Tensor:
        """Position embedding of a file, of the grid ``source``, for the grid of this encoder."""
        tile, extra = self.pos_embed_tile, self.num_extra_tokens
        if not tile or source == self.grid_size:
            return resize_pos_embed(embed, source, self.grid_size, 'bicubic', extra)
        rows, columns = source
        require(
            not (rows % tile or columns % tile),
            f'pos_embed_tile {tile} must divide the grid of {rows} x {columns} patches of the weights',
        )
        return tile_pos_embed(embed, source, self.grid_size, tile, extra)

    def _prepare_pos_embed(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        """mmpretrain's hook of ``load_state_dict``, which stretches."""
        embed = state_dict.get(f'{prefix}pos_embed')
        if self.pos_embed_tile and embed is not None and embed.shape != self.pos_embed.shape:
            state = dict(pos_embed=embed)
            self.resize_positions(state)
            state_dict[f'{prefix}pos_embed'] = state['pos_embed']
            return
        super()._prepare_pos_embed(state_dict, prefix, *args, **kwargs)

    def _format_output(self, x: Tensor, grid: tuple[int, int]) -> Any:
        """Tokens of a block, (B, 1 + L, D), as ``out_type`` wants them."""
        if self.out_type != MAP_AND_TOKEN:
            return super()._format_output(x, grid)
        return x[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2), x[:, 0]  # (B, D, rows, columns), (B, D)

    @property
    def fresh_weights(self) -> set[str]:
        """Names of weights that a pretrained checkpoint cannot have, and that may stay as initialized."""
        parts = ('rel_pos_bias', 'gamma1', 'gamma2')
        return {name for name in self.state_dict() if name.startswith('ln2.') or any(part in name for part in parts)}

    @torch.no_grad()
    def resize_positions(self, state: dict[str, Tensor], grid: tuple[int, int] | None = None) -> list[str]:
        """Resize in a state dict, in place, what depends on the number of patches: bicubic, or tiled.

        Args:
            state: Weights of an encoder in this project's names.
            grid: Rows and columns of patches of its position embedding; by default this encoder's, or a square.

        Returns:
            Names of the resized weights.
        """
        wanted = self.state_dict()
        resized = []
        embed = state.get('pos_embed')
        # The same number of patches may still be another grid, which only the caller knows.
        if embed is not None and embed.dim() == 3 and (grid or embed.shape != wanted['pos_embed'].shape):
            extra = self.num_extra_tokens
            if not extra and 'cls_token' in state:
                embed = embed[:, 1:]
            source = grid_of(embed.shape[1] - extra, grid, self.grid_size)
            if source is not None:
                state['pos_embed'] = self._fitted(embed, source)
                if source != self.grid_size:
                    resized.append('pos_embed')
        for name in [name for name in state if name.endswith('.rel_pos_bias.relative_position_bias_table')]:
            if name in wanted and state[name].shape != wanted[name].shape:
                bias = self.get_submodule(name.rpartition('.')[0])
                offsets = len(state[name]) - (3 if bias.class_token else 0)
                side = math.isqrt(offsets)  # 2 * rows - 1
                if side * side == offsets and side % 2:
                    state[name] = resize_bias_table(state[name], ((side + 1) // 2,) * 2, bias.grid)
                    resized.append(name)
        return resized

    def main_blocks(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.layers)

    def final_norm_of(self, x: Tensor) -> Tensor:
        """Apply the final norm."""
        return self.ln1(x)

    def check_pretraining(self) -> None:
        """Refuse windows and relative positions, which need all patches, repeated positions, and a missing norm."""
        is_plain = not self.window_size and not self.rel_pos_bias and self.final_norm
        require(is_plain, 'pretraining needs window_size=0, rel_pos_bias=False and final_norm=True in the backbone')
        require(not self.pos_embed_tile, 'pretraining needs pos_embed_tile=0 in the backbone')
        require(not hasattr(self, 'ln2'), "pretraining needs another out_type of the backbone than 'avg_featmap'")

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.patch_embed.projection.in_channels

    def encode_last(self, x: Tensor, ids: Tensor | None = None, norm: bool = False) -> Tensor:
        """Run the last block; with ``ids``, the queries are those of the chosen patches only."""
        query = None if ids is None else take_tokens(x, ids + self.num_extra_tokens)  # (B, M, D)
        x = self.layers[-1](x, query)
        return self.ln1(x) if norm else x

    def class_attention(self, x: Tensor) -> Tensor:
        """Attention of the class token to the patches in the last block: its input (B, 1 + L, D) -> (B, heads, L)."""
        return self.layers[-1](x, x[:, :1], weights=True)[:, :, 0, self.num_extra_tokens :]

    def embed_all(self, images: Tensor) -> Tensor:
        """Embed all patches, with positions: (B, C, H, W) -> (B, 1 + L, D)."""
        self.check_images(images)
        x, _ = self.patch_embed(images)  # (B, L, D)
        x = torch.cat([self._placed_cls_token(len(x)), x + self.pos_embed[:, self.num_extra_tokens :]], dim=1)
        return self.pre_norm(self.drop_after_pos(x))

    def embed_kept(self, images: Tensor, ids_keep: Tensor) -> Tensor:
        """Embed the kept patches only, with positions: (B, C, H, W), (B * K, V) -> (B * K, 1 + V, D)."""
        self.check_images(images)
        projection = self.patch_embed.projection
        patches = take_patches(images, ids_keep, self.patch_size).flatten(2)  # (B * K, V, C * patch * patch)
        x = F.linear(patches, projection.weight.flatten(1), projection.bias)  # (B * K, V, D)
        x = x + take_tokens(self.pos_embed[:, self.num_extra_tokens :], ids_keep)
        return self.pre_norm(self.drop_after_pos(torch.cat([self._placed_cls_token(len(x)), x], dim=1)))

    def _placed_cls_token(self, batch: int) -> Tensor:
        """The class token with its position, (batch, 1, D); (batch, 0, D) if there is none."""
        if self.cls_token is None:
            return self.pos_embed.new_empty(batch, 0, self.embed_dims)
        return (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)


def grid_of(patches: int, given: tuple[int, int] | None, wanted: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of a number of patches: as given, as wanted, or a square; None if none fits."""
    side = math.isqrt(patches)
    for rows, columns in [tuple(given)] if given else [wanted, (side, side)]:
        if rows * columns == patches:
            return rows, columns
    return None
