"""The authors' UperNet checkpoints (``Segmentation/`` of LightDXY/BootMAE, on mmseg 0.x) for this project's UperNet.

Their backbone has BEiT's names, a relative-position bias and two scales (gammas) a block, and contains the layers that
rescale its outputs, which are the neck here.
"""

from __future__ import annotations

import torch

from .names import ENCODER, rename
from .official import Conversion

TABLE = (
    *((f'backbone.{theirs}', f'backbone.{ours}') for theirs, ours in ENCODER if theirs != 'norm.{}'),
    (
        'backbone.blocks.{}.attn.relative_position_bias_table',
        'backbone.layers.{}.attn.rel_pos_bias.relative_position_bias_table',
    ),
    ('backbone.blocks.{}.gamma_1', 'backbone.layers.{}.attn.gamma1.weight'),
    ('backbone.blocks.{}.gamma_2', 'backbone.layers.{}.ffn.gamma2.weight'),
    ('backbone.fpn1.{}.{}', 'neck.upsample_4x.{}.{}'),
    ('backbone.fpn2.{}.{}', 'neck.upsample_2x.{}.{}'),
)
# Computed from the size of the image here.
BUFFER = 'relative_position_index'


def is_official_segmentation(checkpoint: dict) -> bool:
    """Whether a checkpoint is a segmentation model of the authors."""
    return 'backbone.blocks.0.attn.q_bias' in checkpoint.get('state_dict', {})


def segmentation_to_project(checkpoint: dict) -> Conversion:
    """Convert a segmentation checkpoint of the authors for ``configs/seg``.

    Args:
        checkpoint: With ``state_dict``.

    Returns:
        A checkpoint with ``state_dict`` and ``meta``. Optimizer and iteration are left out: its parameter groups are
        others.

    Raises:
        ValueError: If it is not one of theirs, or a key of the backbone is unknown.
    """
    if not is_official_segmentation(checkpoint):
        raise ValueError(
            'not a segmentation checkpoint of the authors: backbone.blocks.0.attn.q_bias is missing; it has '
            f'{sorted(checkpoint.get("state_dict", checkpoint))[:3]}'
        )
    state = checkpoint['state_dict']
    result = {}
    moves = []
    for name, value in state.items():
        if name.endswith(BUFFER):
            continue
        target = name if not name.startswith('backbone.') else rename(name, TABLE)
        if target is None:
            raise ValueError(f'unknown key {name!r}: not a segmentation checkpoint of BootMAE')
        target, _, part = target.partition('#')
        moves.append((name, target))
        if part == 'q':  # no bias of the keys there
            value = torch.cat([value, torch.zeros_like(value), state[name.replace('q_bias', 'v_bias')]])
        if part != 'v':
            result[target] = value
    return Conversion(dict(state_dict=result, meta=dict(source='LightDXY/BootMAE')), moves)
