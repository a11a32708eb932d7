"""The encoder as timm's ``VisionTransformer``."""

from __future__ import annotations

from typing import Any

from .preprocessing import Preprocessing


def timm_config(
    arch: dict,
    img_size: tuple[int, int],
    patch_size: int,
    preprocessing: Preprocessing,
    channels: int = 3,
    pooled: bool = False,
) -> dict[str, Any]:
    """Content of ``config.json`` for ``timm.create_model('local-dir:FOLDER')``.

    Args:
        arch: The backbone's ``arch_settings``.
        img_size: Height and width in pixels.
        patch_size: Side of a patch in pixels.
        preprocessing: Preprocessing of the run.
        channels: Number of channels of an image.
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
            crop_mode='squash' if preprocessing.squash else 'center',
            mean=list(preprocessing.mean),
            std=list(preprocessing.std),
            num_classes=0,
        ),
    )
