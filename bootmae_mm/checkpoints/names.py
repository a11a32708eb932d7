"""Names of an encoder's weights here and in other programs: the authors', timm's, transformers'."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from bootmae_mm.validation import require

# The authors' names and this project's; {} is one level of a name. Names with # are parts of one parameter.
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


# timm has one bias for q, k and v, as here; the authors of BootMAE have two of the three.
TIMM = (
    *((theirs, ours) for theirs, ours in ENCODER if '#' not in ours),
    ('fc_norm.{}', 'ln2.{}'),
    ('blocks.{}.attn.qkv.bias', 'layers.{}.attn.qkv.bias'),
)
# timm's variants (layer scale, CLIP's norm before the blocks), read but not written.
FROM_TIMM = (
    *TIMM,
    ('norm_pre.{}', 'pre_norm.{}'),
    ('blocks.{}.ls1.gamma', 'layers.{}.attn.gamma1.weight'),
    ('blocks.{}.ls2.gamma', 'layers.{}.ffn.gamma2.weight'),
)
# Names of the checkpoints on the hub, which every version of transformers reads; @ is query, key or value.
ANCHOR = 'embeddings.patch_embeddings.projection'
HUGGINGFACE = (
    ('embeddings.cls_token', 'cls_token'),
    ('embeddings.position_embeddings', 'pos_embed'),
    ('embeddings.patch_embeddings.projection.{}', 'patch_embed.projection.{}'),
    ('encoder.layer.{}.layernorm_before.{}', 'layers.{}.ln1.{}'),
    ('encoder.layer.{}.layernorm_after.{}', 'layers.{}.ln2.{}'),
    ('encoder.layer.{}.attention.attention.@.{}', 'layers.{}.attn.qkv.{}'),
    ('encoder.layer.{}.attention.output.dense.{}', 'layers.{}.attn.proj.{}'),
    ('encoder.layer.{}.intermediate.dense.{}', 'layers.{}.ffn.layers.0.0.{}'),
    ('encoder.layer.{}.output.dense.{}', 'layers.{}.ffn.layers.1.{}'),
    ('layernorm.{}', 'ln1.{}'),
)
# Of DINOv2, read but not written.
FROM_HUGGINGFACE = (
    *HUGGINGFACE,
    ('encoder.layer.{}.norm1.{}', 'layers.{}.ln1.{}'),
    ('encoder.layer.{}.norm2.{}', 'layers.{}.ln2.{}'),
    ('encoder.layer.{}.mlp.fc1.{}', 'layers.{}.ffn.layers.0.0.{}'),
    ('encoder.layer.{}.mlp.fc2.{}', 'layers.{}.ffn.layers.1.{}'),
    ('encoder.layer.{}.layer_scale1.lambda1', 'layers.{}.attn.gamma1.weight'),
    ('encoder.layer.{}.layer_scale2.lambda1', 'layers.{}.ffn.gamma2.weight'),
)
CLIP_ANCHOR = 'embeddings.patch_embedding.weight'
# The vision part of CLIP.
FROM_CLIP = (
    ('embeddings.class_embedding', 'cls_token'),
    ('embeddings.position_embedding.weight', 'pos_embed'),
    ('embeddings.patch_embedding.{}', 'patch_embed.projection.{}'),
    ('pre_layrnorm.{}', 'pre_norm.{}'),
    ('encoder.layers.{}.layer_norm1.{}', 'layers.{}.ln1.{}'),
    ('encoder.layers.{}.layer_norm2.{}', 'layers.{}.ln2.{}'),
    ('encoder.layers.{}.self_attn.@_proj.{}', 'layers.{}.attn.qkv.{}'),
    ('encoder.layers.{}.self_attn.out_proj.{}', 'layers.{}.attn.proj.{}'),
    ('encoder.layers.{}.mlp.fc1.{}', 'layers.{}.ffn.layers.0.0.{}'),
    ('encoder.layers.{}.mlp.fc2.{}', 'layers.{}.ffn.layers.1.{}'),
    ('post_layernorm.{}', 'ln1.{}'),
)
Table = Iterable[tuple[str, str]]


def rename(name: str, table: Table) -> str | None:
    """Name in the other column of a table such as :data:`ENCODER`, or None."""
    for source, target in table:
        match = re.fullmatch(re.escape(source).replace(r'\{\}', '([^.]+)'), name)
        if match:
            return target.format(*match.groups())
    return None


def rename_strictly(name: str, table: Table, failure: str) -> str:
    """Name in the other column of a table.

    Raises:
        ConfigError: If the table does not have it; the message is ``failure`` and the name.
    """
    target = rename(name, table)
    require(target is not None, f'{failure} {name!r}')
    return cast(str, target)


def reverse(table: Table) -> Table:
    """The table for the other direction."""
    return tuple((target, source) for source, target in table)


def join_biases(
    state: dict[str, Tensor], table: Table, failure: str
) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """Rename the weights of an encoder with separate biases for q and v, and join these to a qkv bias.

    Args:
        state: Weights in the authors' names.
        table: Table of names, see :data:`ENCODER`.
        failure: Message for an unknown name.

    Returns:
        Weights in this project's names, and pairs of old and new names.

    Raises:
        ConfigError: If a name is unknown, or a bias of v is missing.
    """
    result: dict[str, Tensor] = {}
    moves = []
    for name, value in state.items():
        target, _, part = rename_strictly(name, table, failure).partition('#')
        moves.append((name, target))
        if part == 'q':
            value_bias = name.replace('q_bias', 'v_bias')
            require(value_bias in state, f'incomplete checkpoint: {name} is there, {value_bias} is not')
            value = torch.cat([value, torch.zeros_like(value), state[value_bias]])  # the keys have no bias
        if part != 'v':
            result[target] = value
    return result, moves


def is_timm(state: dict) -> bool:
    """Whether a state dict holds a vision transformer in timm's names."""
    return 'blocks.0.attn.qkv.weight' in state and 'patch_embed.proj.weight' in state


def from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to this project's names; weights outside the encoder (a head, MAE's decoder) keep their names."""
    return {rename(name, FROM_TIMM) or name: value for name, value in state.items()}


def to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an encoder's weights to timm's names.

    Raises:
        ConfigError: If timm's plain vision transformer does not have a weight.
    """
    failure = "timm's vision transformer has no weight"
    return {rename_strictly(name, reverse(TIMM), failure): value for name, value in state.items()}


def to_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an encoder's weights to transformers' names, and split those of q, k and v.

    Raises:
        ConfigError: If transformers' model does not have a weight.
    """
    result = {}
    for name, value in state.items():
        target = rename_strictly(name, reverse(HUGGINGFACE), "transformers' ViTModel has no weight")
        parts = ('query', 'key', 'value') if '@' in target else ('',)
        for part, piece in zip(parts, value.chunk(len(parts)), strict=True):
            result[target.replace('@', part)] = piece.clone() if part else piece
    return result


def is_huggingface(state: dict) -> bool:
    """Whether a state dict holds a ViT or ViTMAE in transformers' names, with or without a prefix."""
    return any(name.endswith(f'{ANCHOR}.weight') for name in state)


def is_clip(state: dict) -> bool:
    """Whether a state dict holds the vision part of CLIP in transformers' names, with or without a prefix."""
    return any(name.endswith(CLIP_ANCHOR) for name in state)


def from_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to this project's names, and join q, k and v; heads, a pooler and MAE's decoder keep their names.

    Raises:
        ConfigError: If a layer lacks one of the three.
    """
    return _from_transformers(state, FROM_HUGGINGFACE, f'{ANCHOR}.weight', ('query', 'key', 'value'))


def from_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the vision part of CLIP to this project's names, with the shapes of its class token and positions.

    Raises:
        ConfigError: If a layer lacks one of q, k and v.
    """
    state = _from_transformers(state, FROM_CLIP, CLIP_ANCHOR, ('q', 'k', 'v'))
    state['cls_token'] = state['cls_token'].reshape(1, 1, -1)
    state['pos_embed'] = state['pos_embed'][None]  # (1, 1 + L, D)
    return state


def _from_transformers(
    state: dict[str, Tensor], names: Table, anchor: str, parts: tuple[str, str, str]
) -> dict[str, Tensor]:
    found = next(name for name in state if name.endswith(anchor))
    prefix = found.removesuffix(anchor)  # such as 'vit.'
    first, *others = parts
    table = tuple((theirs.replace('@', first), ours) for theirs, ours in names)
    is_joined = [theirs.partition('@')[::2] for theirs, _ in names if '@' in theirs]
    before, after = is_joined[0]
    marks = [
        before.rsplit('{}', 1)[-1] + part + after.split('{}', 1)[0] for part in parts
    ]  # such as '.attention.query.'
    result = {}
    for name, value in state.items():
        inner = name.removeprefix(prefix)
        target = rename(inner, table)
        if target is not None and marks[0] in inner:
            three = [prefix + inner.replace(marks[0], mark) for mark in marks]
            absent = [part for part in three if part not in state]
            require(not absent, f'not a plain vision transformer: {absent} missing (BEiT has no bias of the keys)')
            result[target] = torch.cat([state[part] for part in three])
        elif not any(mark in inner for mark in marks[1:]):
            result[target or name] = value
    return result
