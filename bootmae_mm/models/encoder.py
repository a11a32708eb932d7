"""What pretraining asks of an encoder, and what all encoders share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from bootmae_mm.checkpoints.encoder import load_encoder
from bootmae_mm.validation import require

from .block import run_block
from .tokens import take_tokens


class PretrainingEncoder(nn.Module):
    """Base class of encoders, beside a backbone of mmpretrain: patches become tokens, and blocks transform all tokens.

    A subclass defines the attributes, :meth:`embed_all`, :meth:`embed_kept`, :meth:`main_blocks`,
    :meth:`final_norm_of`, and for loading ``fresh_weights`` and ``resize_positions``. Another encoder fits if the
    tokens of kept patches do not depend on the pixels of the others.

    Attributes:
        img_size: Height and width of the images in pixels.
        patch_size: Side of a patch in pixels.
        grid_size: Rows and columns of patches.
        in_channels: Channels of an image.
        embed_dims, num_layers, num_heads: Width of a token, number of blocks, heads of a block.
        num_extra_tokens: Number of tokens before those of the patches: 1 with a class token, else 0.
        with_cp: Use activation checkpointing.
    """

    img_size: Any
    patch_size: Any
    grid_size: tuple[int, int]
    in_channels: Any
    embed_dims: Any
    num_layers: Any
    num_heads: Any
    num_extra_tokens: Any
    with_cp: bool
    init_cfg: Any

    def embed_all(self, images: Tensor) -> Tensor:
        """Embed all patches, with positions: (B, C, H, W) -> (B, 1 + L, D), or (B, L, D) without a class token."""
        raise NotImplementedError

    def embed_kept(self, images: Tensor, ids_keep: Tensor) -> Tensor:
        """Embed the kept patches only, with positions: (B, C, H, W), (B * K, V) -> (B * K, 1 + V, D)."""
        raise NotImplementedError

    def main_blocks(self) -> list[nn.Module]:
        """Blocks that transform all tokens, ``num_layers`` of them."""
        raise NotImplementedError

    def final_norm_of(self, x: Tensor) -> Tensor:
        """Apply the norm after the last block."""
        raise NotImplementedError

    def check_pretraining(self) -> None:
        """Refuse options that are for downstream tasks only."""

    def encode_visible(
        self, images: Tensor, ids_keep: Tensor, context_blocks: set[int] | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Encode the class token and the kept patches only: the student's pass.

        Args:
            images: (B, C, H, W) of the configured size.
            ids_keep: Indices of the kept patches, (B * K, V), for K masks per image.
            context_blocks: Blocks whose outputs are wanted as context.

        Returns:
            The latent (B * K, 1 + V, D) after the final norm, and the outputs of ``context_blocks`` *before* it, by
            block.
        """
        x = self.embed_kept(images, ids_keep)  # (B * K, 1 + V, D)
        context = {}
        for index, block in enumerate(self.main_blocks()):
            x = run_block(block, x, with_cp=self.with_cp)  # (B * K, 1 + V, D)
            if context_blocks and index in context_blocks:
                context[index] = x
        return self.final_norm_of(x), context

    def encode_hidden(self, images: Tensor, blocks: int = 1) -> list[Tensor]:
        """Encode whole images up to the last block: the teacher's pass but for its end.

        Args:
            images: (B, C, H, W) of the configured size.
            blocks: Number of blocks before the last one whose outputs are wanted.

        Returns:
            Their outputs, (B, 1 + L, D) each, the input of the last block last.
        """
        x = self.embed_all(images)  # (B, 1 + L, D)
        outputs = deque([x], maxlen=blocks)
        for block in self.main_blocks()[:-1]:
            x = block(x)  # (B, 1 + L, D)
            outputs.append(x)
        return list(outputs)

    def encode_last(self, x: Tensor, ids: Tensor | None = None, norm: bool = False) -> Tensor:
        """Run the last block.

        Args:
            x: Input of the last block, (B, 1 + L, D).
            ids: Indices of the patches whose output is wanted, (B, M); all tokens by default.
            norm: Apply the final norm.

        Returns:
            Tensor (B, M, D), or (B, 1 + L, D) without ``ids``.
        """
        x = self.main_blocks()[-1](x)  # (B, 1 + L, D)
        x = x if ids is None else take_tokens(x, ids + self.num_extra_tokens)  # (B, M, D)
        return self.final_norm_of(x) if norm else x

    def encode_patches(self, images: Tensor, ids: Tensor, norm: bool = False) -> Tensor:
        """Encode whole images, (B, C, H, W), and return features of chosen patches: ids (B, M) -> (B, M, D)."""
        return self.encode_last(self.encode_hidden(images)[-1], ids, norm)

    def class_attention(self, x: Tensor) -> Tensor:
        """Attention of the class token to the patches in the last block: its input (B, 1 + L, D) -> (B, heads, L)."""
        raise NotImplementedError

    def check_images(self, images: Tensor) -> None:
        """Refuse images of another size than the configured one.

        Raises:
            ConfigError: With both sizes.
        """
        height, width = self.img_size
        require(
            images.dim() == 4 and tuple(images.shape[2:]) == (height, width),
            f'images must have the shape (batch, channels, {height}, {width}) (img_size of the backbone), but have '
            f'{tuple(images.shape)}',
        )

    def load_init_cfg(self) -> None:
        """Load the checkpoints of ``init_cfg=dict(type='Pretrained', ...)`` strictly."""
        for config in filter(is_pretrained, init_configs(self.init_cfg)):
            options = {key: value for key, value in config.items() if key not in ('type', 'map_location')}
            print_log(f'backbone: {load_encoder(self, **options)}', logger='current')


def init_configs(given: Any) -> list[dict]:  # noqa: ANN401
    """The configs of an ``init_cfg``: a dict, a list of dicts, or None."""
    return given if isinstance(given, list) else [given] if given else []


def is_pretrained(config: dict) -> bool:
    """Whether an ``init_cfg`` is ``Pretrained``, in any of the names that mmengine accepts."""
    kind = config['type']
    name = kind if isinstance(kind, str) else kind.__name__
    return name.rsplit('.', 1)[-1] in ('Pretrained', 'PretrainedInit')


@torch.no_grad()
def init_linear(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Initialize linear layers as the authors do: Xavier-uniform, q, k and v each on their own, and zero biases."""
    for name, module in modules:
        if isinstance(module, nn.Linear):
            for part in module.weight.chunk(3) if name.endswith('qkv') else [module.weight]:
                nn.init.xavier_uniform_(part)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
