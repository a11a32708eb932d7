"""A hierarchical encoder: mmpretrain's HiViT, with the two passes for pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from mmpretrain.models import HiViT
from mmpretrain.models.backbones.hivit import PatchMerge
from mmpretrain.models.utils import resize_pos_embed
from pydantic import Field
from torch import Tensor, nn

from bootmae_mm.registry import MODELS
from bootmae_mm.validation import Few, Options, Rate, Side, Size, parse, patch_grid, require, validated

from .backbone import grid_of
from .block import run_block
from .encoder import PretrainingEncoder, init_configs, init_linear, is_pretrained
from .tokens import sincos_pos_embed, take_patches, take_tokens

INNER = 4  # patches of the stem along a side of a patch


class HiViTArchitecture(Options):
    """A custom ``arch``."""

    embed_dims: Annotated[Side, Field(multiple_of=16)]
    depths: Annotated[list[Few], Field(min_length=3, max_length=3)]
    num_heads: Side


@MODELS.register_module()
class BootMAEHiViT(PretrainingEncoder, HiViT):
    """HiViT (arXiv 2205.14949): MLPs on 4 x 4 parts of every patch, merged twice, then plain blocks on the patches.

    No operation before the plain blocks mixes patches, so that the student computes the kept patches only, exactly.
    Weights have mmpretrain's names, and load in its ``HiViT``; only the final norm, which that does not have, is extra.
    There is no class token.

    Args:
        arch: ``'t'``, ``'s'``, ``'b'``, ``'l'``, or a dict with the fields of :class:`HiViTArchitecture`.
        img_size: Height and width of the images in pixels, divisible by ``patch_size``; downstream, images may have
            another size, and the position embedding is resized.
        patch_size: Side of a patch in pixels, divisible by 4.
        in_channels: Channels of an image.
        out_indices: Stages whose maps :meth:`forward` returns: 0, 1 and 2 have strides of a quarter of a patch, half of
            one, and a patch.
        drop_path_rate: Stochastic depth rate of the last block; rises linearly from 0.
        norm_cfg: Config of the norms.
        layer_scale_init_value: Initial value of layer scale; 0 for none.
        frozen_stages: -1 to train everything, 0 to freeze the embedding, k to also freeze the first k of all blocks.
        with_cp: Use activation checkpointing in the plain blocks.
        init_cfg: As in :class:`BootMAEViT`.

    Raises:
        ConfigError: For an unknown arch, an image not divisible by the patch, or a width not divisible by the heads.
    """

    cls_token = None

    @validated
    def __init__(
        self,
        arch: Any = 'base',
        img_size: Size = (224, 224),
        patch_size: Annotated[Side, Field(multiple_of=INNER)] = 16,
        in_channels: Side = 3,
        out_indices: Sequence[Annotated[int, Field(ge=0, le=2)]] = (2,),
        drop_path_rate: Rate = 0.0,
        norm_cfg: dict = dict(type='LN', eps=1e-6),  # noqa: B006  not changed
        layer_scale_init_value: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: Any = None,
    ) -> None:
        if isinstance(arch, str):
            names = ', '.join(sorted(self.arch_zoo))
            require(arch.lower() in self.arch_zoo, f'unknown arch {arch!r}; valid names: {names}')
        else:
            arch = parse(HiViTArchitecture, arch, 'arch').model_dump()
            fits = arch['embed_dims'] % arch['num_heads'] == 0
            require(fits, f'arch.embed_dims must be divisible by arch.num_heads {arch["num_heads"]}')
        require(out_indices, 'out_indices must name a stage')
        self.grid_size = patch_grid(img_size, patch_size)
        super().__init__(
            arch=arch,
            img_size=tuple(img_size),
            patch_size=patch_size,
            inner_patches=INNER,
            in_chans=in_channels,
            drop_path_rate=drop_path_rate,
            norm_cfg=norm_cfg,
            out_indices=[0],
            layer_scale_init_value=layer_scale_init_value,
            init_cfg=init_cfg,
        )
        self.img_size = tuple(img_size)
        self.in_channels = in_channels
        self.num_layers = self.num_main_blocks
        self.stages = sorted(set(out_indices))
        self.with_cp = with_cp
        self.pos_embed.requires_grad_(False)
        self.norm = nn.LayerNorm(self.embed_dims, eps=norm_cfg.get('eps', 1e-5))
        total = len(self.blocks)
        require(-1 <= frozen_stages <= total, f'frozen_stages must be in -1..{total}, but is {frozen_stages}')
        self.frozen = [] if frozen_stages < 0 else [self.patch_embed, *self.blocks[:frozen_stages]]
        for module in self.frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> BootMAEHiViT:
        """Set the mode; frozen parts stay in eval mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def init_weights(self) -> None:
        """Initialize as mmpretrain's HiViT for MAE; then load the checkpoint of ``init_cfg`` strictly."""
        given = self.init_cfg
        self.init_cfg = [config for config in init_configs(given) if not is_pretrained(config)] or None
        super().init_weights()
        self.init_cfg = given
        init_linear(self.named_modules())
        projection = self.patch_embed.proj
        nn.init.xavier_uniform_(projection.weight.flatten(1))  # a view
        nn.init.zeros_(projection.bias)
        with torch.no_grad():
            self.pos_embed.copy_(sincos_pos_embed(self.grid_size, self.embed_dims)[:, 1:])
        self.load_init_cfg()

    def stem_blocks(self) -> list[nn.Module]:
        """Blocks before the plain ones: MLPs and merges within a patch."""
        return list(self.blocks[: -self.num_main_blocks])

    def main_blocks(self) -> list[nn.Module]:
        """The plain blocks."""
        return list(self.blocks[-self.num_main_blocks :])

    def final_norm_of(self, x: Tensor) -> Tensor:
        """Apply the final norm."""
        return self.norm(x)

    def embed_all(self, images: Tensor) -> Tensor:
        """Embed all patches, with positions: (B, C, H, W) -> (B, L, D)."""
        self.check_images(images)
        return self._merged(self.patch_embed(images)) + self.pos_embed  # (B, L, D)

    def embed_kept(self, images: Tensor, ids_keep: Tensor) -> Tensor:
        """Embed the kept patches only, with positions: (B, C, H, W), (B * K, V) -> (B * K, V, D)."""
        self.check_images(images)
        patches = take_patches(images, ids_keep, self.patch_size)  # (B * K, V, C, patch, patch)
        parts = self.patch_embed(patches.flatten(0, 1))  # (B * K * V, 1, 4, 4, D / 4): each patch as an image
        x = self._merged(parts.squeeze(1).unflatten(0, ids_keep.shape))  # (B * K, V, D)
        return x + take_tokens(self.pos_embed, ids_keep)  # (B * K, V, D)

    def _merged(self, x: Tensor) -> Tensor:
        """Run the stem: (B, N, 4, 4, D / 4) -> (B, N, D)."""
        for block in self.stem_blocks():
            x = block(x)  # 4 x 4 parts become 2 x 2, then one; the width doubles with each merge
        return x[:, :, 0, 0]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the downstream pass.

        Args:
            images: (B, C, H, W) of any size; padded with zeros at the right and bottom to a multiple of the patch.

        Returns:
            A map (B, width, rows, columns) for each stage of ``out_indices``, in ascending order, without the final
            norm, as in mmpretrain.
        """
        height, width = (-side % self.patch_size for side in images.shape[2:])
        images = F.pad(images, (0, width, 0, height)) if height or width else images
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        x = self.patch_embed(images)  # (B, L, 4, 4, D / 4)
        maps = []
        for block in self.stem_blocks():
            if isinstance(block, PatchMerge):  # the end of a stage
                maps.append(_as_map(x, grid))
            x = block(x)
        # Parts have merged: (B, L, D)
        x = x[:, :, 0, 0] + resize_pos_embed(self.pos_embed, self.grid_size, grid, 'bicubic', num_extra_tokens=0)
        for block in self.main_blocks():
            x = run_block(block, x, with_cp=self.with_cp)
        maps.append(_as_map(x[:, :, None, None], grid))  # (B, D, rows, columns)
        return tuple(maps[stage] for stage in self.stages)

    @property
    def fresh_weights(self) -> set[str]:
        """Names of weights that mmpretrain's HiViT does not have."""
        return {name for name in self.state_dict() if name.startswith('norm.') or 'gamma' in name}

    @torch.no_grad()
    def resize_positions(self, state: dict[str, Tensor], grid: tuple[int, int] | None = None) -> list[str]:
        """Resize the position embedding in a state dict, in place; see :meth:`BootMAEViT.resize_positions`."""
        embed = state.get('pos_embed')
        if embed is None or embed.dim() != 3:
            return []
        source = grid_of(embed.shape[1], grid, self.grid_size)
        if source is None or source == self.grid_size:
            return []
        state['pos_embed'] = resize_pos_embed(embed, source, self.grid_size, 'bicubic', num_extra_tokens=0)
        return ['pos_embed']

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer of a parameter and the number of layers, for layer decay: embedding, blocks, what comes after."""
        total = len(self.blocks) + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix) or name.startswith('norm.'):
            return total - 1, total
        return (int(name.split('.')[1]) + 1 if name.startswith('blocks.') else 0), total


def _as_map(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Parts of patches as a map: (B, L, p, p, D) -> (B, D, rows * p, columns * p)."""
    return x.unflatten(1, grid).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
