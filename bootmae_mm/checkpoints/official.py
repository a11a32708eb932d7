"""The authors' pretraining checkpoints (LightDXY/BootMAE) and this project's, both ways.

Theirs hold ``model`` and ``model_ema``, both with encoder and decoders. Here the state dict holds the student's parts
and, under ``teacher.``, the encoder of ``model_ema``; what this project does not use (decoders of ``model_ema``,
optimizer, epoch, arguments) is kept under the key ``official``, so that the conversion back is exact to the byte.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bootmae_mm.validation import require

from .names import ENCODER, rename_strictly, reverse

# Names of the pixel regressor; those of the feature predictor have _1 after the first word (@).
DECODER = (
    ('down@.{}', 'neck.decoders.{part}.embed.{}'),
    ('mask_token@', 'neck.decoders.{part}.mask_token'),
    ('decode_norm@.{}', 'neck.decoders.{part}.norm.{}'),
    ('decode_blocks@.{}.norm1.{}', 'neck.decoders.{part}.blocks.{}.self_norm.{}'),
    ('decode_blocks@.{}.norm2.{}', 'neck.decoders.{part}.blocks.{}.mlp_norm.{}'),
    ('decode_blocks@.{}.norm3.{}', 'neck.decoders.{part}.blocks.{}.query_norm.{}'),
    ('decode_blocks@.{}.norm4.{}', 'neck.decoders.{part}.blocks.{}.context_norm.{}'),
    ('decode_blocks@.{}.attn.qkv.weight', 'neck.decoders.{part}.blocks.{}.self_attn.qkv.weight#qkv'),
    ('decode_blocks@.{}.attn.q_bias', 'neck.decoders.{part}.blocks.{}.self_attn.q.bias'),
    ('decode_blocks@.{}.attn.v_bias', 'neck.decoders.{part}.blocks.{}.self_attn.kv.bias#v'),
    ('decode_blocks@.{}.attn.proj.{}', 'neck.decoders.{part}.blocks.{}.self_attn.proj.{}'),
    ('decode_blocks@.{}.c_attn.q.weight', 'neck.decoders.{part}.blocks.{}.cross_attn.q.weight'),
    ('decode_blocks@.{}.c_attn.kv.weight', 'neck.decoders.{part}.blocks.{}.cross_attn.kv.weight'),
    ('decode_blocks@.{}.c_attn.q_bias', 'neck.decoders.{part}.blocks.{}.cross_attn.q.bias'),
    ('decode_blocks@.{}.c_attn.v_bias', 'neck.decoders.{part}.blocks.{}.cross_attn.kv.bias#v'),
    ('decode_blocks@.{}.c_attn.proj.{}', 'neck.decoders.{part}.blocks.{}.cross_attn.proj.{}'),
    ('decode_blocks@.{}.mlp.fc1.{}', 'neck.decoders.{part}.blocks.{}.mlp.layers.0.0.{}'),
    ('decode_blocks@.{}.mlp.fc2.{}', 'neck.decoders.{part}.blocks.{}.mlp.layers.1.{}'),
)
TABLE = (
    *((theirs, f'backbone.{ours}') for theirs, ours in ENCODER),
    *(
        (theirs.replace('@', suffix), ours.replace('{part}', part))
        for part, suffix in (('pixel', ''), ('feature', '_1'))
        for theirs, ours in DECODER
    ),
    ('de_pos_embed', 'neck.decoders.pixel.pos_embed'),
    ('lm_head.proj.{}', 'pixel_head.projection.{}'),
    ('lm_head_1.{}', 'feature_head.projection.{}'),
)
# The authors' feature predictor uses the encoder's embedding; here each decoder has its own.
FEATURE_POS_EMBED = 'neck.decoders.feature.pos_embed'


@dataclass
class Conversion:
    """A converted checkpoint and its names.

    Attributes:
        checkpoint: The converted checkpoint.
        moves: Pairs of the key in the source and the key in the result, for every tensor.
    """

    checkpoint: dict
    moves: list[tuple[str, str]] = field(default_factory=list)


def is_official(checkpoint: dict) -> bool:
    """Whether a checkpoint is a pretraining checkpoint of the authors."""
    return {'blocks.0.attn.q_bias', 'down.weight'} <= set(checkpoint.get('model', {}))


def _without_prefix(name: str) -> str:
    return name.split('.', 1)[1]


def state_to_project(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """Convert the weights of one of the authors' models.

    Args:
        state: Weights in the authors' names.

    Returns:
        Weights in this project's names, and pairs of old and new names.

    Raises:
        ConfigError: If a key is unknown.
    """
    parts: dict[str, Tensor] = {}
    moves = []
    for name, value in state.items():
        target = rename_strictly(name, TABLE, 'not a pretraining checkpoint of BootMAE: unknown key')
        parts[target] = value
        moves.append(
            (name, target.split('#')[0] if '#qkv' not in target else target.replace('qkv.weight#qkv', '{q,kv}.weight'))
        )
    result: dict[str, Tensor] = {}
    for name, value in parts.items():
        base, _, part = name.partition('#')
        if part == 'qkv':
            inner = len(value) // 3
            result[base.replace('qkv', 'q')] = value[:inner].clone()
            result[base.replace('qkv', 'kv')] = value[inner:].clone()
        elif part == 'q':
            result[base] = torch.cat([value, torch.zeros_like(value), parts[f'{base}#v']])
        elif part == 'v' and not base.endswith('qkv.bias'):
            result[base] = torch.cat([torch.zeros_like(value), value])
        elif not part:
            result[base] = value
    if 'lm_head_1.weight' in state:
        result[FEATURE_POS_EMBED] = state['pos_embed'].clone()
        moves.append(('pos_embed', FEATURE_POS_EMBED))
    return result, moves


def state_to_official(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """The inverse of :func:`state_to_project`. Key biases are dropped, as softmax cancels them.

    Raises:
        ConfigError: If the authors' model does not have a weight.
    """
    parts: dict[str, tuple[str, Tensor]] = {}
    for name, value in state.items():
        if name == FEATURE_POS_EMBED:
            same = torch.equal(value, state['backbone.pos_embed'])
            require(same, f"{name} differs from backbone.pos_embed; the authors' model has one for both")
        elif name.endswith('attn.qkv.bias'):
            width = len(value) // 3
            parts[f'{name}#q'], parts[f'{name}#v'] = (name, value[:width].clone()), (name, value[2 * width :].clone())
        elif name.endswith('attn.kv.bias'):
            parts[f'{name}#v'] = name, value[len(value) // 2 :].clone()
        elif name.endswith('self_attn.kv.weight'):
            query = name.replace('kv.weight', 'q.weight')
            parts[name.replace('kv.weight', 'qkv.weight#qkv')] = name, torch.cat([state[query], value])
        elif not name.endswith('self_attn.q.weight'):
            parts[name] = name, value
    result, moves = {}, []
    for name, (source, value) in parts.items():
        target = rename_strictly(name, reverse(TABLE), "the authors' model has no weight")
        result[target] = value
        moves.append((source, target))
    return result, moves


def to_project(checkpoint: dict) -> Conversion:
    """Convert a checkpoint of the authors.

    Args:
        checkpoint: Checkpoint with ``model`` and, for the teacher, ``model_ema``.

    Returns:
        A checkpoint with ``state_dict`` (backbone, neck, heads, teacher), ``meta`` and ``official``.

    Raises:
        ConfigError: If it is not a checkpoint of theirs.
    """
    require(
        is_official(checkpoint),
        'not a pretraining checkpoint of the authors: `model` with BEiT-style keys is missing; the file has '
        f'{sorted(checkpoint)[:5]}',
    )
    state, moves = state_to_project(checkpoint['model'])
    conversion = Conversion({}, [(f'model.{source}', target) for source, target in moves])
    official: dict = dict(order={'model': list(checkpoint['model'])}, top=list(checkpoint))
    if 'model_ema' in checkpoint:
        ema, moves = state_to_project(checkpoint['model_ema'])
        state.update(
            {f'teacher.{_without_prefix(name)}': value for name, value in ema.items() if name.startswith('backbone.')}
        )
        conversion.moves += [
            (
                f'model_ema.{source}',
                f'teacher.{_without_prefix(target)}'
                if target.startswith('backbone.')
                else f'official.model_ema.{source}',
            )
            for source, target in moves
            if target != FEATURE_POS_EMBED
        ]
        encoder = {source for source, target in moves if target.startswith('backbone.')}
        official['model_ema'] = {name: value for name, value in checkpoint['model_ema'].items() if name not in encoder}
        official['order']['model_ema'] = list(checkpoint['model_ema'])
    rest = {key: value for key, value in checkpoint.items() if key not in ('model', 'model_ema')}
    if isinstance(rest.get('args'), argparse.Namespace):  # as a dict: safe loading would refuse the class
        official['namespace'] = vars(rest.pop('args'))
    official['rest'] = rest
    conversion.moves += [(key, f'official.{key}') for key in checkpoint if key not in ('model', 'model_ema')]
    conversion.checkpoint = dict(state_dict=state, meta=dict(source='LightDXY/BootMAE'), official=official)
    return conversion


def to_official(checkpoint: dict) -> Conversion:
    """Convert a checkpoint of this project to the authors' form, the inverse of :func:`to_project`.

    A checkpoint trained here has no decoders of ``model_ema``; the student's are written instead (nothing reads them).

    Raises:
        ConfigError: If it has no student, or the authors' model has no place for a weight.
    """
    state = checkpoint.get('state_dict', {})
    student = {name: value for name, value in state.items() if not name.startswith('teacher.')}
    require(
        any(name.startswith('backbone.') for name in student),
        'not a pretraining checkpoint of this project: no key starts with backbone.; the file has '
        f'{sorted(checkpoint)[:5]}',
    )
    official = checkpoint.get('official', {})
    model, moves = state_to_official(student)
    conversion = Conversion({}, [(source, f'model.{target}') for source, target in moves])
    models = {'model': model}
    teacher = {
        f'backbone.{_without_prefix(name)}': value for name, value in state.items() if name.startswith('teacher.')
    }
    if teacher:
        ema, moves = state_to_official(teacher)
        kept = official.get('model_ema') or {name: value for name, value in model.items() if name not in ema}
        models['model_ema'] = {**ema, **kept}
        conversion.moves += [(f'teacher.{_without_prefix(source)}', f'model_ema.{target}') for source, target in moves]
    order = official.get('order', {})
    values: dict = {key: {name: state[name] for name in order.get(key, state)} for key, state in models.items()}
    values.update(official.get('rest', {}))
    if 'namespace' in official:
        values['args'] = argparse.Namespace(**official['namespace'])
    conversion.checkpoint = {key: values[key] for key in official.get('top', values)}
    return conversion
