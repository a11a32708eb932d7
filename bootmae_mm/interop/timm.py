"""The encoder in timm's names (``vit_*_patch16``), which MAE's and DeiT's authors use too."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .official import ENCODER, rename
from .preprocessing import Preprocessing

# timm has one bias for q, k and v, as here; the authors of BootMAE have two of the three.
TABLE = (
    *((theirs, ours) for theirs, ours in ENCODER if '#' not in ours),
    ('fc_norm.{}', 'ln2.{}'),
    ('blocks.{}.attn.qkv.bias', 'layers.{}.attn.qkv.bias'),
)


def is_timm(state: dict) -> bool:
    """Whether a state dict holds a vision transformer in timm's names."""
    return 'blocks.0.attn.qkv.weight' in state and 'patch_embed.proj.weight' in state


def from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to this project's names; what is not part of the encoder (a head, MAE's decoder) keeps its own."""
    return {rename(name, TABLE) or name: value for name, value in state.items()}


def to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an encoder's weights to timm's names.

    Raises:
        ValueError: If timm's plain vision transformer has no place for a weight.
    """
    back = tuple((ours, theirs) for theirs, ours in TABLE)
    result = {}
    for name, value in state.items():
        target = rename(name, back)
        if target is None:
            raise ValueError(f"timm's vision transformer has no place for {name}")
        result[target] = value
    return result


def timm_config(
    arch: dict,
    img_size: tuple[int, int],
    patch_size: int,
    preprocessing: Preprocessing,
    channels: int = 3,
    pooled: bool = False,
) -> dict[str, Any]:
    """The content of ``config.json`` for ``timm.create_model('local-dir:FOLDER')``.

    Args:
        arch: The backbone's ``arch_settings``.
        img_size: Height and width in pixels.
        patch_size: Edge of a patch in pixels.
        preprocessing: How the run prepared its images.
        channels: Channels of an image.
        pooled: Whether the norm comes after the mean of the patch tokens, instead of before.
    """
    return dict(
        architecture='vit_base_patch16_224',
        num_classes=0,
        num_features=arch['embed_dims'],
        global_pool='avg',
        model_args=dict(
            img_size=list(img_size),
            patch_size=patch_size,
            embed_dim=arch['embed_dims'],
            depth=arch['num_layers'],
            num_heads=arch['num_heads'],
            mlp_ratio=arch['feedforward_channels'] / arch['embed_dims'],
            in_chans=channels,
            fc_norm=pooled,
            global_pool='avg',
        ),
        pretrained_cfg=dict(
            input_size=[channels, *img_size],
            interpolation=preprocessing.interpolation,
            crop_pct=preprocessing.crop_pct,
            mean=list(preprocessing.mean),
            std=list(preprocessing.std),
            num_classes=0,
        ),
    )
