"""Codes of a discrete tokenizer, the target of BEiT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch import Tensor

from bootmae_mm.config.parts import class_of
from bootmae_mm.registry import MODELS
from bootmae_mm.validation import ConfigError, Count, Positive, Side, require, validated

from ..step import Step
from .base import ImagesFor, ModelInfo, Target
from .weights import FrozenModule


@MODELS.register_module()
class CodeTarget(Target):
    """One code per patch, from a tokenizer of mmpretrain: ``VQKD`` (BEiT v2) or ``DALL-E`` (BEiT).

    Args:
        info: Facts of the model.
        tokenizer: Its config, such as ``dict(type='VQKD', encoder_config=...)`` or
            ``dict(type='DALL-E')``. It gives codes (B, L), or logits (B, codes, rows, columns).
        checkpoint: Path of its weights.
        codes: Size of its codebook.
        prefix: Prefix of its keys in the file.
        patch_size: Side in pixels of what becomes one code: 16 for VQKD, 8 for DALL-E. The images are resized (bicubic)
            to as many of them as the student has patches.
        mean: Mean of its images by channel, for values in 0..255: 127.5 for VQKD; -31.875 for DALL-E.
        std: Standard deviation of its images by channel: 127.5 for VQKD; 318.75 for DALL-E, so that values become 0.1
            to 0.9.
    """

    kind = 'codes'

    @validated
    def __init__(
        self,
        info: ModelInfo,
        tokenizer: dict,
        checkpoint: str,
        codes: Count = 8192,
        prefix: str = '',
        patch_size: Side = 16,
        mean: Sequence[float] = (127.5, 127.5, 127.5),
        std: Sequence[Positive] = (127.5, 127.5, 127.5),
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.dims = codes
        self.images_for = ImagesFor(info, patch_size, mean, std)
        self.patches = info.grid_size[0] * info.grid_size[1]
        class_of(tokenizer, BaseModule, 'tokenizer', MMPRETRAIN_MODELS)
        try:
            module = MMPRETRAIN_MODELS.build({**tokenizer, '_scope_': 'mmpretrain'})
        except (TypeError, KeyError, AssertionError) as error:
            raise ConfigError(f'tokenizer {tokenizer["type"]!r} does not take these options: {error}') from error
        found = getattr(getattr(module, 'quantize', None), 'num_tokens', codes)
        require(found == codes, f'codes is {codes}, but the tokenizer has {found}')
        self.tokenizer = FrozenModule(module, checkpoint, prefix)

    @torch.no_grad()
    def forward(self, images: Tensor, ids_mask: Tensor, step: Step | None = None) -> Tensor:
        """Codes of the masked patches: (B, C, H, W), (B * K, M) -> (B * K, M), int64."""
        out = self.tokenizer(self.images_for(images))
        is_output = isinstance(out, Tensor) and (out.dim() == 2 or out.dim() == 4 and out.shape[1] == self.dims)
        require(is_output, f'the tokenizer gives neither codes (B, L) nor logits (B, {self.dims}, rows, columns)')
        codes = (out.argmax(dim=1) if out.is_floating_point() else out).flatten(1)  # (B, L)
        require(
            codes.shape[1] == self.patches,
            f'the tokenizer gives {codes.shape[1]} codes per image instead of {self.patches}: check patch_size',
        )
        ids = ids_mask.reshape(len(images), -1)  # (B, K * M)
        return codes.gather(1, ids).view(ids_mask.shape)  # (B * K, M)
