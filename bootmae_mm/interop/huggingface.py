"""The encoder as a Vision Transformer of Hugging Face's transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .official import rename
from .preprocessing import INTERPOLATIONS, Preprocessing

ANCHOR = 'embeddings.patch_embeddings.projection'

# In the names of the checkpoints on the hub, which every version of transformers reads.
TABLE = (
    ('cls_token', 'embeddings.cls_token'),
    ('pos_embed', 'embeddings.position_embeddings'),
    ('patch_embed.projection.{}', 'embeddings.patch_embeddings.projection.{}'),
    ('layers.{}.ln1.{}', 'encoder.layer.{}.layernorm_before.{}'),
    ('layers.{}.ln2.{}', 'encoder.layer.{}.layernorm_after.{}'),
    ('layers.{}.attn.qkv.{}', 'encoder.layer.{}.attention.attention.@.{}'),
    ('layers.{}.attn.proj.{}', 'encoder.layer.{}.attention.output.dense.{}'),
    ('layers.{}.ffn.layers.0.0.{}', 'encoder.layer.{}.intermediate.dense.{}'),
    ('layers.{}.ffn.layers.1.{}', 'encoder.layer.{}.output.dense.{}'),
    ('ln1.{}', 'layernorm.{}'),
)


def to_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an encoder's weights, and split those of q, k and v.

    Raises:
        ValueError: If transformers' model has no place for a weight.
    """
    result = {}
    for name, value in state.items():
        target = rename(name, TABLE)
        if target is None:
            raise ValueError(f"transformers' ViTModel has no place for {name}")
        if '@' in target:
            for part, piece in zip(('query', 'key', 'value'), value.chunk(3), strict=True):
                result[target.replace('@', part)] = piece.clone()
        else:
            result[target] = value
    return result


def huggingface_config(
    arch: dict, img_size: tuple[int, int], patch_size: int, channels: int = 3, eps: float = 1e-6
) -> dict[str, Any]:
    """The content of ``config.json``."""
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
    """The content of ``preprocessor_config.json``."""
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


def is_huggingface(state: dict) -> bool:
    """Whether a state dict holds a ViT or ViTMAE in transformers' names, with or without a prefix."""
    return any(name.endswith(f'{ANCHOR}.weight') for name in state)


def from_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to this project's names, and join q, k and v; heads, a pooler and MAE's decoder keep their own names."""
    anchor = next(name for name in state if name.endswith(f'{ANCHOR}.weight'))
    prefix = anchor.removesuffix(f'{ANCHOR}.weight')  # such as 'vit.'
    back = tuple((theirs.replace('@', 'query'), ours) for ours, theirs in TABLE)
    result = {}
    for name, value in state.items():
        inner = name.removeprefix(prefix) if name.startswith(prefix) else name
        target = rename(inner, back)
        if target is not None and '.attention.query.' in inner:
            names = [prefix + inner.replace('query', part) for part in ('query', 'key', 'value')]
            absent = [part for part in names if part not in state]
            if absent:
                raise ValueError(f'no plain vision transformer: {absent[0]} is missing (BEiT has no bias of the keys)')
            result[target] = torch.cat([state[part] for part in names])
        elif not ('.attention.key.' in inner or '.attention.value.' in inner):
            result[target or name] = value
    return result
