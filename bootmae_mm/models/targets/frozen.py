"""Features of a frozen encoder of timm or mmpretrain, such as CLIP or DINOv2."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch import Tensor, nn

from bootmae_mm.config.parts import class_of
from bootmae_mm.registry import MODELS
from bootmae_mm.validation import ConfigError, Positive, Side, parse, require, validated

from ..step import Step
from ..tokens import take_tokens
from .base import ImagesFor, ModelInfo, Target
from .weights import FrozenModule

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
Kind = Literal['tokens', 'block', 'values']


class PatchFeatures(nn.Module):
    """Features of the patches from a plain vision transformer: images (B, C, H, W) -> (B, L, D).

    Subclasses build ``vit`` for a size of images, and know its parts.

    Args:
        vit: The transformer.
        features: See :class:`FrozenTarget`.
    """

    convert: Callable[[dict], dict] | None = None  # turns the names of a file into those of ``vit``
    num_extra_tokens: int
    dims: int

    def __init__(self, vit: nn.Module, features: Kind) -> None:
        super().__init__()
        self.vit, self.features = vit, features

    def blocks(self) -> nn.Module:
        """The blocks of the transformer."""
        raise NotImplementedError

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens after the final norm: (B, C, H, W) -> (B, extra + L, D)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Run the transformer, and catch the output of the part that is asked for."""
        caught: list[Tensor] = []
        last = self.blocks()[-1]
        part = last if self.features == 'block' else last.attn.qkv
        handle = part.register_forward_hook(lambda _, __, output: caught.append(output))
        try:
            tokens = self.tokens(images)  # (B, extra + L, D)
        finally:
            handle.remove()
        if self.features == 'block':
            tokens = caught[0]
        elif self.features == 'values':
            tokens = caught[0].chunk(3, dim=2)[2]  # of queries, keys and values
        return tokens[:, self.num_extra_tokens :]


class TimmFeatures(PatchFeatures):
    """Features of a ViT of timm."""

    def __init__(self, config: dict, size: tuple[int, int], features: Kind) -> None:
        options = {key: value for key, value in config.items() if key not in ('type', 'model_name')}
        require('pretrained' not in options, 'encoder.pretrained is not used: the weights come from checkpoint')
        name = parse(str, config.get('model_name'), 'encoder.model_name')
        try:
            import timm
        except ImportError as error:
            raise ConfigError(f'encoder {name!r} needs timm: pip install timm') from error
        require(timm.is_model(name), f'encoder.model_name {name!r} is unknown to timm; see timm.list_models()')
        try:
            vit = timm.create_model(name, pretrained=False, **{'num_classes': 0, 'img_size': size, **options})
        except (TypeError, AssertionError) as error:
            raise ConfigError(f'encoder.model_name {name!r} of timm is no plain ViT: {error}') from error
        is_vit = hasattr(vit, 'blocks') and hasattr(vit, 'num_prefix_tokens')
        require(is_vit, f'encoder.model_name {name!r} of timm is no plain ViT')
        super().__init__(vit, features)
        self.num_extra_tokens, self.dims = vit.num_prefix_tokens, vit.embed_dim

    def convert(self, state: dict) -> dict:
        """Names of timm; also from the original ones of CLIP and DINOv2, and with another number of patches."""
        module: Any = inspect.getmodule(type(self.vit))
        return module.checkpoint_filter_fn(state, self.vit)

    def blocks(self) -> nn.Module:
        """The blocks."""
        return self.vit.blocks

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens after the final norm."""
        return self.vit.forward_features(images)


class MMPretrainFeatures(PatchFeatures):
    """Features of a ViT of mmpretrain."""

    def __init__(self, config: dict, size: tuple[int, int], features: Kind) -> None:
        options = {'img_size': size, 'out_type': 'raw', 'out_indices': -1, '_scope_': 'mmpretrain'}
        class_of(config, BaseBackbone, 'encoder', MMPRETRAIN_MODELS)
        try:
            vit = MMPRETRAIN_MODELS.build({**config, **options})
        except (TypeError, AssertionError) as error:
            raise ConfigError(f'encoder {config["type"]!r} is no plain ViT: {error}') from error
        require(hasattr(vit, 'layers'), f'encoder {config["type"]!r} is no plain ViT')
        super().__init__(vit, features)
        self.num_extra_tokens, self.dims = vit.num_extra_tokens, vit.embed_dims

    def blocks(self) -> nn.Module:
        """The blocks."""
        return self.vit.layers

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens after the final norm."""
        return self.vit(images)[-1]


@MODELS.register_module()
class FrozenTarget(Target):
    """Features of the patch tokens of a frozen vision transformer, with weights from a file.

    It sees the images in its own normalization, and resized (bicubic) so that it has as many patches as the student: an
    encoder with patches of 14 sees 196 of the 224 pixels of a student with patches of 16.

    For a frozen encoder of this project (as in dBOT), use ``model.teacher=dict(checkpoint=...)`` and
    :class:`TeacherTarget`.

    Args:
        info: Facts of the model.
        encoder: Config of a plain ViT in mmpretrain's names, without ``img_size``: of timm
            ``dict(type='TIMMBackbone', model_name=...)``, of mmpretrain such as
            ``dict(type='VisionTransformer', arch='b')``.
        checkpoint: Path of its weights. With timm also those of CLIP and DINOv2 in their original names.
        prefix: Prefix of its keys in the file.
        features: ``'tokens'``: its output, after the final norm; ``'block'``: the output of the last block, before that
            norm; ``'values'``: the values of the last block's attention.
        mean: Mean of its images by channel, for values in 0..255; by default ImageNet's.
        std: Standard deviation of its images by channel; by default ImageNet's.

    Raises:
        ConfigError: If the encoder is unknown, is no plain ViT, or does not get as many patches as the student.
    """

    @validated
    def __init__(
        self,
        info: ModelInfo,
        encoder: dict,
        checkpoint: str,
        prefix: str = '',
        features: Kind = 'tokens',
        patch_size: Side = 16,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[Positive] = IMAGENET_STD,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.images_for = ImagesFor(info, patch_size, mean, std)
        build = TimmFeatures if encoder.get('type') == 'TIMMBackbone' else MMPretrainFeatures
        run = build(dict(encoder), self.images_for.size, features)
        self.dims = run.dims
        projection = next(module for module in run.vit.patch_embed.modules() if isinstance(module, nn.Conv2d))
        side = projection.kernel_size[0]
        require(side == patch_size, f'patch_size of the target is {patch_size}, but its encoder has patches of {side}')
        if features == 'values':
            device = next(run.parameters()).device
            try:
                run.eval()
                run(torch.zeros(1, info.in_channels, *self.images_for.size, device=device))
            except (IndexError, AttributeError) as error:
                raise ConfigError(f'features {features!r} needs an encoder that runs a qkv layer') from error
        self.encoder = FrozenModule(run, checkpoint, prefix, part='vit', convert=run.convert)

    @torch.no_grad()
    def forward(self, images: Tensor, ids_mask: Tensor, step: Step | None = None) -> Tensor:
        """Features of the masked patches: (B, C, H, W), (B * K, M) -> (B * K, M, D)."""
        return take_tokens(self.encoder(self.images_for(images)), ids_mask)
