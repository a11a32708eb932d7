"""Names of an encoder's weights here and in other programs: the authors', timm's, transformers'."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

# The authors' names and this project's; {} stands for one level of the name. Names with # are parts of one parameter.
ENCODER = (
    ('cls_token', 'cls_token'),
    ('pos_embed', 'pos_embed'),
    ('patch_embed.proj.{}', 'patch_embed.projection.{}'),
    ('blocks.{}.norm1.{}', 'layers.{}.ln1.{}'),
    ('blocks.{}.norm2.{}', 'layers.{}.ln2.{}'),
    ('blocks.{}.attn.qkv.weight', 'layers.{}.attn.qkv.weight'),
    ('blocks.{}.attn.q_bias', 'layers.{}.attn.qkv.bias#q'),
    ('blocks.{}.attn.v_bias', 'layers.{}.attn.qkv.bias#v'),
    ('blocks.{}.attn.proj.{}', 'layers.{}.attn.proj.{}'),
    ('blocks.{}.mlp.fc1.{}', 'layers.{}.ffn.layers.0.0.{}'),
    ('blocks.{}.mlp.fc2.{}', 'layers.{}.ffn.layers.1.{}'),
    ('norm.{}', 'ln1.{}'),
)


def rename(name: str, table: Iterable[tuple[str, str]]) -> str | None:
    """The target of a name in a table such as :data:`ENCODER`, or None."""
    for source, target in table:
        match = re.fullmatch(re.escape(source).replace(r'\{\}', '([^.]+)'), name)
        if match:
            return target.format(*match.groups())
    return None


# timm has one bias for q, k and v, as here; the authors of BootMAE have two of the three.
TIMM = (
    *((theirs, ours) for theirs, ours in ENCODER if '#' not in ours),
    ('fc_norm.{}', 'ln2.{}'),
    ('blocks.{}.attn.qkv.bias', 'layers.{}.attn.qkv.bias'),
)


def is_timm(state: dict) -> bool:
    """Whether a state dict holds a vision transformer in timm's names."""
    return 'blocks.0.attn.qkv.weight' in state and 'patch_embed.proj.weight' in state


def from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to this project's names; what is not part of the encoder (a head, MAE's decoder) keeps its own."""
    return {rename(name, TIMM) or name: value for name, value in state.items()}


def to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an encoder's weights to timm's names.

    Raises:
        ValueError: If timm's plain vision transformer has no place for a weight.
    """
    back = tuple((ours, theirs) for theirs, ours in TIMM)
    result = {}
    for name, value in state.items():
        target = rename(name, back)
        if target is None:
            raise ValueError(f"timm's vision transformer has no place for {name}")
        result[target] = value
    return result


ANCHOR = 'embeddings.patch_embeddings.projection'

# In the names of the checkpoints on the hub, which every version of transformers reads.
HUGGINGFACE = (
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
        target = rename(name, HUGGINGFACE)
        if target is None:
            raise ValueError(f"transformers' ViTModel has no place for {name}")
        if '@' in target:
            for part, piece in zip(('query', 'key', 'value'), value.chunk(3), strict=True):
                result[target.replace('@', part)] = piece.clone()
        else:
            result[target] = value
    return result


def is_huggingface(state: dict) -> bool:
    """Whether a state dict holds a ViT or ViTMAE in transformers' names, with or without a prefix."""
    return any(name.endswith(f'{ANCHOR}.weight') for name in state)


def from_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to this project's names, and join q, k and v; heads, a pooler and MAE's decoder keep their own names."""
    anchor = next(name for name in state if name.endswith(f'{ANCHOR}.weight'))
    prefix = anchor.removesuffix(f'{ANCHOR}.weight')  # such as 'vit.'
    back = tuple((theirs.replace('@', 'query'), ours) for ours, theirs in HUGGINGFACE)
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
