"""The encoder as a Vision Transformer of Hugging Face's transformers."""

from __future__ import annotations

from typing import Any

from bootmae_mm.checkpoints.sources import INTERPOLATIONS

from .preprocessing import Preprocessing


def huggingface_config(
    arch: dict, img_size: tuple[int, int], patch_size: int, channels: int = 3, eps: float = 1e-6
) -> dict[str, Any]:
    """Content of ``config.json``."""
    return dict(
        architectures=['ViTModel'],
        model_type='vit',
        hidden_size=arch['embed_dims'],
        num_hidden_layers=arch['num_layers'],
        num_attention_heads=arch['num_heads'],
        intermediate_size=arch['feedforward_channels'],
        hidden_act='gelu',
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.02,
        layer_norm_eps=eps,
        image_size=img_size[0] if img_size[0] == img_size[1] else list(img_size),
        patch_size=patch_size,
        num_channels=channels,
        qkv_bias=True,
    )


def huggingface_preprocessor(img_size: tuple[int, int], preprocessing: Preprocessing) -> dict[str, Any]:
    """Content of ``preprocessor_config.json``."""
    return dict(
        image_processor_type='ViTImageProcessor',
        do_resize=True,
        size=dict(height=img_size[0], width=img_size[1]),
        resample=INTERPOLATIONS[preprocessing.interpolation],
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(preprocessing.mean),
        image_std=list(preprocessing.std),
    )
